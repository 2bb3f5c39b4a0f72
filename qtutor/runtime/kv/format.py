"""What a cache of keys and values stores, and how many bytes that takes.

Numbers that share a scale are a group. Values, and keys ``"token"``: every token and head is coded as soon as it comes;
at 8 bits the whole head is one group, at fewer bits it is cut into groups of 32. Keys ``"channel"``: a group is one
channel of the head over 32 tokens. Keys have channels that are large in all tokens, and then only these channels have
large steps (KIVI, arXiv 2402.02750, section 3.2). Values have no such channels. A window of 32 tokens can be coded only
when it is full; until then its keys stay as they are.
"""

from dataclasses import dataclass

import torch

from qtutor.core.float_grid import FP8
from qtutor.core.grid import Grid, IntGrid
from qtutor.core.packing import packed_width
from qtutor.errors import QtutorError, check_choice
from qtutor.families import head_dim

GRIDS = {2: IntGrid(2), 4: IntGrid(4), 8: IntGrid(8), "fp8": FP8, 16: None}
TOKEN, CHANNEL = "token", "channel"


@dataclass(frozen=True)
class Coding:
    """How one tensor ``[..., tokens, head]``, keys or values, is stored.

    grid: ``None`` stores numbers as they are. group: how many share a scale, 0 for the whole head. channel: groups run
    along the tokens, not along the head. rotated: numbers are first rotated (:mod:`.rotation`).
    """

    grid: Grid | None
    group: int = 0
    channel: bool = False
    rotated: bool = False

    @property
    def unit(self) -> int:
        """How many tokens are coded together."""
        return self.group if self.channel else 1

    def shapes(self, head: int, dtype: torch.dtype) -> dict[str, tuple[int, torch.dtype]]:
        """The tensors of a unit of one head, by name: the count of their entries and their dtype.

        dtype: that of numbers that are stored as they are.

        >>> Coding(IntGrid(4), 32).shapes(64, torch.float32)
        {'codes': (32, torch.uint8), 'scales': (2, torch.float16), 'zeros': (1, torch.uint8)}
        """
        if self.grid is None:
            return {"codes": (head, dtype)}
        # Rows of codes, and groups in each: of a token or of a channel.
        rows, length = (head, self.unit) if self.channel else (1, head)
        groups = -(-length // (self.group or head))
        stored = {"codes": (rows * packed_width(length, self.grid.bits), torch.uint8)}
        stored["scales"] = rows * groups, self.grid.scale_dtype
        if not self.grid.symmetric:
            stored["zeros"] = packed_width(rows * groups, self.grid.bits), torch.uint8
        return stored

    def nbytes(self, tokens: int, head: int, dtype: torch.dtype) -> int:
        """The bytes of ``tokens`` tokens of one head; a last window that is not full is stored as it is."""
        units, rest = divmod(tokens, self.unit)
        a_unit = sum(count * of.itemsize for count, of in self.shapes(head, dtype).values())
        return units * a_unit + rest * head * dtype.itemsize


@dataclass(frozen=True)
class KVFormat:
    """The format of a cache. Raises :class:`QtutorError` for a field with an unknown value.

    bits: 2, 4 or 8 (whole numbers with scale and zero point), ``"fp8"`` (E4M3 with a scale), or 16: as the model
    computes them. value_bits: those of the values; the default is ``bits``. keys: ``"token"`` or ``"channel"``. rotate:
    rotate numbers before they are rounded. group: how many numbers share a scale.
    """

    bits: int | str = 8
    value_bits: int | str | None = None
    keys: str = TOKEN
    rotate: bool = False
    group: int = 32

    def __post_init__(self):
        for name, bits in (("bits", self.bits), ("value_bits", self.values_at)):
            if isinstance(bits, bool) or not isinstance(bits, int | str) or bits not in GRIDS:
                raise QtutorError(f"{name} = {bits!r}: choose one of {', '.join(map(repr, GRIDS))}.")
        check_choice("keys", self.keys, (TOKEN, CHANNEL))
        check_choice("rotate", self.rotate, (True, False))
        if type(self.group) is not int or self.group not in range(8, 257, 8):
            raise QtutorError(f"group = {self.group!r}: a multiple of 8 up to 256 is needed, so that bytes are full.")
        if self.keys == CHANNEL and self.bits == 16:
            raise QtutorError("keys = 'channel' and bits = 16: keys that are not rounded have no scales to share.")
        if self.rotate and self.bits == self.values_at == 16:
            raise QtutorError("rotate = True and bits = 16: nothing is rounded, so rotation gains nothing.")

    @property
    def values_at(self) -> int | str:
        """The bits of the values."""
        return self.bits if self.value_bits is None else self.value_bits

    @property
    def codings(self) -> tuple[Coding, Coding]:
        """The codings of keys and of values."""
        return self._coding(self.bits, self.keys == CHANNEL), self._coding(self.values_at, False)

    def _coding(self, bits: int | str, channel: bool) -> Coding:
        grid = GRIDS[bits]
        whole = grid is None or (grid.bits == 8 and not channel)
        return Coding(grid, 0 if whole else self.group, channel, self.rotate and grid is not None)


def cache_bytes(config, form: KVFormat, tokens: int, batch: int = 1, dtype: torch.dtype = torch.float16) -> int:
    """The bytes of a cache of ``form`` after ``tokens`` tokens of each of ``batch`` texts, like :attr:`KVCache.nbytes`.

    config: that of a transformers decoder. dtype: that of numbers that are not rounded. A layer with a sliding window
    holds the tokens that the next one still sees (for keys per channel, whole windows of them).

    >>> cache_bytes(AutoConfig.for_model("llama", num_key_value_heads=8), KVFormat(4), 1)  # 32 layers, heads of 128
    37888
    """
    _, heads, head = shape_of(config)
    total = 0
    for window in windows(config):
        past = 0 if window is None else max(0, tokens - window + 1)
        for coding in form.codings:
            total += coding.nbytes(tokens - past // coding.unit * coding.unit, head, dtype)
    return total * batch * heads


def shape_of(config) -> tuple[int, int, int]:
    """Layers, heads of keys and values, and the width of a head."""
    return config.num_hidden_layers, config.num_key_value_heads, head_dim(config)


def windows(config) -> list[int | None]:
    """Each layer's sliding window, ``None`` if it sees all tokens; :class:`QtutorError` for layers of another kind."""
    from transformers.cache_utils import get_layer_types_and_kwargs

    kinds, settings = get_layer_types_and_kwargs(config)
    known = {"full_attention", "sliding_attention"}
    if set(kinds) - known:
        raise QtutorError(
            f"the model has layers of the kind {sorted(set(kinds) - known)[0]!r}, whose caches hold something else "
            "than keys and values of tokens. Only full and sliding attention can be quantized here."
        )
    return [setting.get("sliding_window") for setting in settings]
