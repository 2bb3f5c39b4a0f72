"""`qtutor inspect`: show what a file or folder holds. It reads only headers, so it is quick for files of any size.

It also shows any one block of a GGUF file, byte by byte.
"""

import os
import sys
from pathlib import Path

from qtutor.errors import QtutorError, shown
from qtutor.files import is_gguf, kind_of
from qtutor.formats.documents import read_json
from qtutor.formats.gguf_files import file_in, files_in
from qtutor.formats.headers import Header, read_header

LONGEST = 72  # characters of a metadata value
LONGEST_NAME = 120  # characters of a name or of any other cell; names of decoders' tensors have about 50


def show(path: Path, tensor: str | None = None, block: int | None = None) -> None:
    """Show the headers of ``path``, or one ``block`` of a ``tensor`` in a GGUF file (block 0 if none is given)."""
    kind = kind_of(path)
    if kind not in ("a file", "a folder") and path.exists():
        raise QtutorError(f"{path} is {kind}: name a .safetensors or .gguf file, or a folder that holds some.")
    if not path.exists():
        raise QtutorError(f"{path} does not exist: name a .safetensors or .gguf file, or a folder that holds some.")
    if tensor is None and block is not None:
        raise QtutorError(f"--block {block} needs a tensor: name it with --tensor; 'qtutor inspect {path}' lists all.")
    if tensor is not None:
        file = file_in(path, alone=False)
        if file is None:
            raise QtutorError(f"{path} is not a GGUF file: --tensor and --block show the blocks of such a file.")
        show_block(file, tensor, block or 0)
    elif path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.suffix.lower() == ".safetensors"]
        ggufs = files_in(path)
        if not files and not ggufs:
            raise QtutorError(f"{path} holds no .safetensors or .gguf file; 'qtutor inspect' reads no other kinds.")
        for file in ggufs:
            show_gguf(file)
        if files:
            show_safetensors(path, files)
    elif is_gguf(path):
        show_gguf(path)
    else:
        show_safetensors(path, [path])


def show_gguf(path: Path) -> None:
    """Print the metadata, the tensors, and how many bytes each block type takes."""
    from qtutor.gguf.parts import part_of, read_here  # imports numpy, for which --help should not wait

    file = read_here(path)
    parts = getattr(file, "parts", [file])
    for part in parts:
        size = part.path.stat().st_size
        print(f"{part.path}: {size:,} bytes, GGUF version {part.version}, alignment {part.alignment}")
    alone = part_of(path, file.metadata) if len(parts) == 1 else None
    print(f"This is {alone}. The lists below cover only this part.\n" if alone else "")
    entries = [(printable(key), *described(value)) for key, value in file.metadata.items()]
    widths = [max((len(entry[i]) for entry in entries), default=0) for i in (0, 1)]
    for key, kind, text in entries:
        print(f"{key:{widths[0]}}  {kind:{widths[1]}}  {text}")
    head = ("type", "bytes", "bits per weight")
    rows, by_type = [], {}
    for info in file.tensors.values():
        name, weights = info.type.name, info.rows * info.shape[-1]
        shape = " x ".join(map(str, info.shape))
        rows.append((printable(info.name), shape, name, f"{info.nbytes:,}", f"{info.type.bits_per_weight:.4g}"))
        count, *sums = by_type.get(name, (0, 0, 0))
        by_type[name] = (count + 1, sums[0] + weights, sums[1] + info.nbytes)
    print()
    print_table(("tensor", "shape", *head), rows)
    by_type["total"] = tuple(map(sum, zip(*by_type.values()))) or (0, 0, 0)
    print()
    print_table(
        (head[0], "tensors", "weights", *head[1:]),
        [(name, f"{n:,}", f"{w:,}", f"{b:,}", f"{8 * b / max(w, 1):.4g}") for name, (n, w, b) in by_type.items()],
    )


def printable(name: str) -> str:
    """The name itself; quoted if it holds characters that control a terminal, and cut if it is long."""
    return name if name.isprintable() and len(name) <= LONGEST_NAME else shown(name, LONGEST_NAME)


def described(value) -> tuple[str, str]:
    """The type of a metadata value and its text, shortened; strings are quoted."""
    if isinstance(value, str):
        return "string", shortened(repr(value[: 2 * LONGEST]), len(value), "characters")
    if isinstance(value, bool):
        return "bool", str(value).lower()
    if isinstance(value, list) or value.ndim:
        kind = "string" if isinstance(value, list) else str(value.dtype)
        parts = [repr(part) if isinstance(part, str) else str(part) for part in value[:LONGEST]]
        return f"{kind}[{len(value)}]", shortened(", ".join(parts), len(value), "values")
    return str(value.dtype), str(value)


def shortened(text: str, count: int, of: str) -> str:
    """``text``; if it is longer than :data:`LONGEST`, its beginning and its whole length, ``count`` in units ``of``."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... ({count:,} {of})"


def show_block(path: Path, tensor: str, number: int) -> None:
    """Print one block of a GGUF file, byte by byte; in colour if the terminal can, unless NO_COLOR is set."""
    from qtutor.gguf.hexview import as_text, block_of
    from qtutor.gguf.parts import read_here

    file = read_here(path)
    file = getattr(file, "part_of", {}).get(tensor, file)  # the part of a split file that holds the tensor
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    print(as_text(block_of(file, tensor, number), colour))


def show_safetensors(path: Path, files: list[Path]) -> None:
    """Print the tensors of all ``files``, and how qtutor quantized them if ``path`` is a folder that it wrote."""
    tensors = {}
    for file in files:
        header = header_of(file)
        about = f", metadata {shown(header.metadata, LONGEST)}" if header.metadata else ""
        print(f"{file}: {file.stat().st_size:,} bytes{about}")
        tensors.update(header.tensors)
    rows = [
        (printable(name), stored.dtype, printable(" x ".join(map(str, stored.shape))), f"{stored.nbytes:,}")
        for name, stored in sorted(tensors.items())
    ]
    sizes = {name: stored.nbytes for name, stored in tensors.items()}
    print_table(("tensor", "dtype", "shape", "bytes"), [*rows, ("total", "", "", f"{sum(sizes.values()):,}")])
    if path.is_dir() and (path / "qtutor.json").is_file():
        print()
        print_layers(path / "qtutor.json", sizes)


def header_of(path: Path) -> Header:
    """The header of a safetensors file with any name. Raises :class:`QtutorError`, naming the file, for other files."""
    if path.suffix.lower() != ".safetensors" and not _has_header(path):
        raise QtutorError(
            f"{path}: 'qtutor inspect' reads .safetensors and .gguf files, and folders that hold some; this is neither."
        )
    if not path.is_file():
        raise QtutorError(f"{path} is not a file, or is a link to a missing file: copy, download or export it again.")
    return read_header(path)


def _has_header(path: Path) -> bool:
    """Whether a file of any name begins like a safetensors file: with a length that fits, then JSON."""
    with open(path, "rb") as file:
        length, first = int.from_bytes(file.read(8), "little"), file.read(1)
    return first == b"{" and 8 + length <= path.stat().st_size


def print_layers(path: Path, sizes: dict[str, int]) -> None:
    """Print how each layer of a qtutor folder is quantized; bits per weight include its scales and zero points."""
    about = read_json(path)
    rows, weights, total = [], 0, 0
    try:
        recipe = about.get("recipe") or {}
        for name, layer in about["layers"].items():
            rows_of_layer, columns = layer["shape"]
            count = rows_of_layer * columns
            size = sum(sizes[key] for key in sizes if key.startswith(f"{name}.") and key != f"{name}.bias")
            grid = "symmetric" if layer["symmetric"] else "asymmetric"
            grid = grid if layer["grid"] == "integers" else layer["grid"]
            grid += ", columns" if layer["kind"] == "scaled linear" else ""  # SINQ's: its inputs are multiplied
            cells = (printable(str(cell)) for cell in (layer["bits"], layer["group_size"], grid))
            rows.append((printable(name), *cells, f"{8 * size / count:.3f}"))
            weights, total = weights + count, total + size
        rows.append(("total", "", "", "", f"{8 * total / weights:.3f}"))
        options = ", ".join(f"{printable(name)} = {shown(value, LONGEST)}" for name, value in recipe.items())
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise QtutorError(f"{path} is damaged ({shown(error)}): quantize the model again.") from None
    print_table(("quantized layer", "bits", "group size", "grid", "bits per weight"), rows)
    if options:
        print(f"\nrecipe: {options}")


def print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print rows under their heads: the first column is aligned to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, tuple("-" * width for width in widths), *rows]:
        first, *rest = (cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        print("  ".join([first, *rest]).rstrip())
