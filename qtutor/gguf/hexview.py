"""A block taken apart, as text: every byte under the name of its field, its scales, and the weights that come out.

    print(as_text(block_of(qtutor.gguf.read("model.gguf"), "blk.0.attn_q.weight", 3)))

`qtutor inspect FILE --tensor NAME --block N` prints this, and :mod:`qtutor.course.widgets.gguf` shows the same in a
notebook. Only that block is read. :mod:`.anatomy` says which bits belong to what.
"""

import difflib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qtutor.errors import QtutorError
from qtutor.gguf.anatomy import FORMULAS, Part, item_bits, item_counts, item_value, item_width
from qtutor.gguf.coding import decode
from qtutor.gguf.layout import TYPES, BlockType
from qtutor.gguf.reader import GGUFFile

ROW = 16  # bytes on a line
WEIGHTS_ROW = 8
# For each field, a colour by Okabe and Ito and the closest of a terminal's 256. Black text can be read on all of
# them. The names of the fields are printed too, so that colour is never the only sign.
_ORANGE, _RED, _PURPLE = ("#E69F00", 178), ("#D55E00", 166), ("#CC79A7", 175)
_GREEN, _SKY, _YELLOW = ("#009E73", 36), ("#56B4E9", 74), ("#F0E442", 227)
COLOURS = {
    "d": _ORANGE, "e": _ORANGE, "dmin": _RED, "m": _RED, "scales": _PURPLE, "scales_l": _PURPLE, "scales_h": _YELLOW,
    "qh": _GREEN, "hmask": _GREEN, "qs": _SKY, "ql": _SKY, "value": _SKY,
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """One block: its bytes, uint8 ``[nbytes]``; the title and number that say which block it is; its place.

    at: its first byte in the file, ``None`` if it is in no file. ``first``: row and column of its first weight.
    """

    title: str
    type: BlockType
    data: np.ndarray
    number: int
    count: int
    first: tuple[int, int]
    at: int | None = None

    @cached_property
    def weights(self) -> np.ndarray | None:
        """float32 ``[values]``; ``None`` for a type that qtutor does not decode."""
        return decode(self.data[None], self.type.name)[0] if self.type.name in TYPES else None

    def __str__(self) -> str:
        row, column = self.first
        last = column + self.type.values - 1
        columns = f"columns {column} to {last}" if last > column else f"column {column}"
        place = f", byte {self.at:,} of the file" if self.at is not None else ""
        return f"{self.title}: block {self.number} (of 0 to {self.count - 1}), row {row}, {columns}{place}"


def check_number(number: int, count: int, title: str) -> None:
    """Raise :class:`QtutorError` unless a tensor of ``count`` blocks has a block ``number``."""
    if not 0 <= number < count:
        raise QtutorError(f"{title} has no block {number}: it has {count:,}, 0 to {count - 1}.")


def block_of(file: GGUFFile, tensor: str, number: int = 0) -> Block:
    """Block ``number`` of a tensor in an open file; :class:`QtutorError`, with similar names, if it is missing."""
    if tensor not in file.tensors:
        close = difflib.get_close_matches(tensor, file.tensors, n=3, cutoff=0.4)
        hint = f"Did you mean {' or '.join(close)}?" if close else f"`qtutor inspect {file.path}` lists all."
        raise QtutorError(f"{file.path} has no tensor {tensor!r} among its {len(file.tensors)}. {hint}")
    info = file.tensors[tensor]
    size = info.type.nbytes
    check_number(number, info.nbytes // size, tensor)
    row, inside = divmod(number, info.row_bytes // size)
    data = file.data(tensor).reshape(-1, size)[number]
    first = row, inside * info.type.values
    return Block(tensor, info.type, data, number, info.nbytes // size, first, info.offset + number * size)


def format_numbers(values: np.ndarray, digits: int = 4) -> list[str]:
    """Numbers with so many decimals that the largest has ``digits`` digits; powers of ten if that is too long."""
    values = values + np.float32(0)  # no -0.0
    finite = np.abs(values[np.isfinite(values)])
    largest = float(finite.max()) if finite.size else 0.0
    places = digits - 1 - int(np.floor(np.log10(largest))) if largest else 1
    if places > 8 or places < -3:
        return [f"{value:.{digits - 1}e}" for value in values]
    return [f"{value:.{max(places, 0)}f}" for value in values]


def items_of(block: Block, field: str) -> dict[str, list[float]]:
    """The values of the scales and minima in a field, by item; nothing for codes, which the weights show better."""
    if field not in ("scales", "scales_l"):  # scales_h holds the upper bits of those in scales_l
        return {}
    counts = item_counts(block.type.name)
    return {
        item: [item_value(block.type.name, block.data, item, i) for i in range(counts[item])]
        for item in ("scale", "min")
        if item in counts
    }


def part_text(block: Block, part: Part) -> str:
    """What some bits of a byte are, what they stand for, and which weights depend on them."""
    name, counts = block.type.name, item_counts(block.type.name)
    called = f"{part.item} {part.number}" if counts[part.item] > 1 else part.item
    top, width = part.shift + part.bits - 1, item_width(name, part.item, part.number)
    if part.trit is not None:
        where, what = f"trit {part.trit}", called
    else:
        where = f"bit {part.low}" if part.bits == 1 else f"bits {part.low} to {part.low + part.bits - 1}"
        inner = f"bit {top}" if part.bits == 1 else f"bits {part.shift} to {top}"
        what = called if part.bits == width else f"{inner} of {called}"
    raw, value = (f(name, block.data, part.item, part.number) for f in (item_bits, item_value))
    stands = f"{value:.6g}" if value == raw or width > 8 else f"{raw}, which stands for {value:.6g}"
    first, last = part.weights.start, part.weights.stop - 1
    moved = (
        f"weights {first} to {last}"
        if last > first
        else f"weight {first} = {computed(block, first)} = {block.weights[first] + 0.0:.6g}"
    )
    return f"{where}: {what} ({stands}); {moved}".replace("-", "−")


def formula(name: str) -> str:
    """How a type's weights are computed, as a person writes it."""
    return FORMULAS[name].replace("*", "·").replace("-", "−")


def computed(block: Block, weight: int) -> str:
    """The type's formula with the numbers of one weight in it: ``0.0039 · (-8)``."""
    name = block.type.name
    words = []
    for word in FORMULAS[name].split():
        count = item_counts(name).get(word)
        if count is None:
            words.append(word.replace("*", "·"))
        else:
            value = item_value(name, block.data, word, weight * count // block.type.values)
            words.append(f"({value:.4g})" if value < 0 else f"{value:.4g}")
    return " ".join(words)


def as_text(block: Block, colour: bool = False) -> str:
    """The block as lines of text; ``colour`` puts a terminal's codes around the bytes."""
    block_type = block.type
    lines = [str(block)]
    lines.append(
        f"{block_type.name}: {block_type.nbytes} bytes for {block_type.values} weights, "
        f"{block_type.bits_per_weight:g} bits a weight"
        + (f"; weight = {FORMULAS[block_type.name]}" if block_type.name in FORMULAS else "")
    )
    lines += ["", "byte  " + " ".join(f"+{i:<2}" for i in range(ROW)).rstrip()]
    at = 0
    for name, size, heading in _headings(block):
        lines.append(_painted(name, name, colour) + heading)
        for start in range(at, at + size, ROW):
            cells = [_painted(f"{byte:02x}", name, colour) for byte in block.data[start : min(start + ROW, at + size)]]
            lines.append(f"{start:4}  " + "  ".join(cells))
        for item, values in items_of(block, name).items():
            lines.append(f"      {item}: " + " ".join(f"{value:g}" for value in values))
        at += size
    return "\n".join([*lines, "", *_weight_lines(block)])


def _headings(block: Block) -> list[tuple[str, int, str]]:
    """For each field its name, its number of bytes, and the text after its name."""
    headings, at = [], 0
    for field in block.type.fields:
        span = f"byte {at}" if field.size == 1 else f"bytes {at} to {at + field.size - 1}"
        alone = item_counts(block.type.name).get(field.name)  # the field is one number
        value = f" = {item_value(block.type.name, block.data, field.name):g}" if alone else ""
        headings.append((field.name, field.size, f", {span}: {field.meaning}{value}"))
        at += field.size
    return headings or [("block", block.type.nbytes, f", bytes 0 to {block.type.nbytes - 1}")]


def _painted(text: str, field: str, colour: bool) -> str:
    return f"\x1b[30;48;5;{COLOURS[field][1]}m{text}\x1b[0m" if colour and field in COLOURS else text


def _weight_lines(block: Block) -> list[str]:
    weights = block.weights
    if weights is None:
        return [f"qtutor does not decode {block.type.name}. It knows {', '.join(TYPES)}."]
    cells = format_numbers(weights)
    width = max(map(len, cells))
    rows = range(0, len(cells), WEIGHTS_ROW)
    return ["weights"] + [
        f"{start:4}  " + "  ".join(cell.rjust(width) for cell in cells[start : start + WEIGHTS_ROW]) for start in rows
    ]
