"""Make results of a learner's function comparable: numbers of any library become numpy arrays, and short texts."""

import math
import numbers

import numpy as np
import torch

SHOWN = 48  # numbers that a message shows in full
LONGEST = 200  # characters of a text that a message shows
DEEPEST = 16  # lists in lists


class NotNumbers(TypeError):
    """A value that holds no numbers, or rows of different lengths; the text says what was found."""


def to_array(value, room: float = math.inf, depth: int = 0) -> np.ndarray:
    """A tensor of any dtype, numpy array, number, text, bytes, or lists of them, as an int64, float64 or text array.

    room: how many numbers it may hold at most, checked before anything is copied. depth: how many lists are around
    ``value``. Raises :class:`NotNumbers` for everything else.
    """
    if isinstance(value, torch.Tensor):
        return _of_tensor(value, room)
    if isinstance(value, list | tuple | range):
        return _of_list(value, room, depth)
    if isinstance(value, str | bytes | bytearray):
        _fits(len(value), room, f"{type(value).__name__} of length {len(value)}")
        if isinstance(value, str):
            return np.array(str(value))
        return np.frombuffer(value, np.uint8).astype(np.int64)
    if isinstance(value, np.ndarray | np.generic):
        return _of_numpy(np.asarray(value), room)
    if isinstance(value, numbers.Number):
        return _of_number(value)
    raise NotNumbers("None" if value is None else f"a {type(value).__name__}{HINTS.get(type(value).__name__, '')}")


HINTS = {
    "generator": " (yield makes one, and so does (... for ...) in round brackets)",
    "coroutine": " (async def makes one; write a plain def)",
}


def _of_tensor(value: torch.Tensor, room: float) -> np.ndarray:
    if value.is_nested:
        raise NotNumbers("a nested tensor, whose rows may differ in length")
    if value.layout != torch.strided:
        raise NotNumbers(f"a tensor of layout {value.layout}; to_dense() makes it an ordinary one")
    if value.is_meta:
        raise NotNumbers('a tensor on the device "meta", which has a shape and no numbers')
    if value.is_complex() or value.is_quantized:
        raise NotNumbers(f"a tensor of {value.dtype}")
    _fits(value.numel(), room, f"a tensor of shape {list(value.shape)}")
    last = value.storage_offset() + sum((size - 1) * step for size, step in zip(value.shape, value.stride()))
    if value.numel() and (last + 1) * value.element_size() > value.untyped_storage().nbytes():
        raise NotNumbers("a tensor whose memory was freed")  # reading it would crash the process
    value = value.detach().cpu().resolve_neg()
    if value.is_floating_point():
        return value.double().numpy()
    return _of_numpy(value.numpy(), room) if value.dtype == torch.uint64 else value.long().numpy()


def _of_list(value, room: float, depth: int) -> np.ndarray:
    if depth == DEEPEST:
        raise NotNumbers(f"made of nested lists, more than {DEEPEST} deep. Does one contain itself?")
    parts, taken = [], 0
    for part in value:
        parts.append(to_array(part, room - taken, depth + 1))
        taken += math.prod(max(1, length) for length in parts[-1].shape)  # empty parts count, too
        _fits(taken, room, f"a {type(value).__name__}")
    if len({part.shape for part in parts}) > 1:
        raise NotNumbers(f"a {type(value).__name__} whose parts differ in shape")
    return np.stack(parts) if parts else np.zeros(0)


def _of_numpy(array: np.ndarray, room: float) -> np.ndarray:
    _fits(array.size, room, f"an array of shape {list(array.shape)}")
    if array.dtype == np.uint64 and array.size and array.max() >= 2**63:
        return array.astype(np.float64)  # in int64 such numbers would be negative
    if array.dtype.kind in "biu":
        return array.astype(np.int64)
    if array.dtype.kind == "f":
        return array.astype(np.float64)
    if array.dtype.kind in "US":
        return array
    raise NotNumbers(f"a numpy array of {array.dtype}" if array.ndim else f"a numpy scalar of {array.dtype}")


def _of_number(value: numbers.Number) -> np.ndarray:
    """A number of Python: int, float, Fraction, Decimal."""
    if isinstance(value, numbers.Integral):
        if not -(2**63) <= value < 2**63:
            raise NotNumbers(f"a whole number of {int(value).bit_length()} bits")
        return np.array(int(value))
    if isinstance(value, numbers.Complex) and not isinstance(value, numbers.Real):
        raise NotNumbers("a complex number")
    try:
        return np.array(float(value))
    except (OverflowError, ValueError, TypeError):
        raise NotNumbers(f"a {type(value).__name__} that does not fit into a float64") from None


def _fits(count: float, room: float, what: str) -> None:
    if count > room:
        raise NotNumbers(f"{what}, far more numbers than the answer has")


def differs(got: np.ndarray, expected: np.ndarray, tolerance: float) -> np.ndarray | None:
    """Booleans that show where two arrays differ; ``None`` if their shapes or kinds (text, numbers) differ."""
    texts = [array.dtype.kind in "US" for array in (got, expected)]
    if got.shape != expected.shape or texts[0] != texts[1]:
        return None
    if texts[0] or (got.dtype.kind == expected.dtype.kind == "i"):
        return got != expected
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf is NaN; the test for equality covers this case
        size = np.abs(expected)
        floor = size[np.isfinite(size)].max(initial=0.0) / 1000
        near = np.isfinite(expected) & (np.abs(got - expected) <= tolerance * np.maximum(size, floor))
    return ~(near | (got == expected) | (np.isnan(got) & np.isnan(expected)))


def of_kind(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """``got`` as int64 or float64 like ``expected``, if that changes none of its numbers."""
    kinds = got.dtype.kind + expected.dtype.kind
    if kinds == "if" or (kinds == "fi" and np.isfinite(got).all() and (got == np.round(got)).all()):
        return got.astype(expected.dtype)
    return got


def number(value, digits: int = 4) -> str:
    """One number (or text) in a message: ``-0.12``, ``3``, ``'0101'``."""
    if isinstance(value, np.str_ | str | bytes):
        text = str(value)
        return repr(text) if len(text) <= LONGEST else f"{text[:LONGEST]!r}... ({len(text)} characters)"
    if isinstance(value, np.integer | int):
        return str(int(value))
    return f"{float(value) + 0.0:.{digits}g}"  # + 0.0: no minus zero


def apart(got, expected) -> tuple[str, str]:
    """Two different numbers with as many digits as are needed to see that they differ."""
    for digits in range(4, 18):
        texts = number(got, digits), number(expected, digits)
        if texts[0] != texts[1]:
            break
    return texts


def show(value) -> str:
    """A value as text for a message: small arrays in full, only the corners of larger ones, never an address."""
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    try:
        array = to_array(value)
    except NotNumbers:
        return repr(value)
    if array.ndim == 0:
        return repr(value) if isinstance(value, bool) else number(array[()])
    return np.array2string(
        array,
        separator=", ",
        threshold=SHOWN,
        edgeitems=3,
        max_line_width=110,
        formatter={"all": number},
    )


def describe(array: np.ndarray) -> str:
    """``one number``, ``text`` or ``shape [4, 8]``."""
    if array.ndim == 0:
        return "text" if array.dtype.kind in "US" else "one number"
    return f"shape {list(array.shape)}"
