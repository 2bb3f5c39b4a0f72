"""What a learner's function returned, made comparable: numbers of any library as numpy arrays, told in few words."""

import numbers

import numpy as np
import torch

SHOWN = 48  # numbers that a message shows in full


class NotNumbers(TypeError):
    """A value that holds no numbers, or rows of different length; the text says what was found."""


def to_array(value) -> np.ndarray:
    """int64, float64 or text array of a tensor of any dtype, a numpy array, a number, bytes, or lists of them.

    Raises :class:`NotNumbers` for everything else.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        if value.is_complex() or value.is_sparse or value.is_quantized:
            raise NotNumbers(f"a tensor of {value.dtype}")
        return value.double().numpy() if value.is_floating_point() else value.long().numpy()
    if isinstance(value, list | tuple):
        parts = [to_array(part) for part in value]
        if len({part.shape for part in parts}) > 1:
            raise NotNumbers(f"a {type(value).__name__} whose parts differ in shape")
        return np.stack(parts) if parts else np.zeros(0)
    if isinstance(value, str):
        return np.array(value)
    if isinstance(value, bytes | bytearray):
        return np.frombuffer(value, np.uint8).astype(np.int64)
    if isinstance(value, np.ndarray | np.generic | numbers.Number):
        array = np.asarray(value)
        if array.dtype.kind in "biu":
            return array.astype(np.int64)
        if array.dtype.kind == "f":
            return array.astype(np.float64)
        if array.dtype.kind in "US":
            return array
        raise NotNumbers(f"{type(value).__name__} of {array.dtype}")
    raise NotNumbers("None" if value is None else f"a {type(value).__name__}")


def differs(got: np.ndarray, expected: np.ndarray, tolerance: float) -> np.ndarray | None:
    """Where two arrays differ, as booleans of their shape; ``None`` if they differ in shape or kind (text, numbers)."""
    texts = [array.dtype.kind in "US" for array in (got, expected)]
    if got.shape != expected.shape or texts[0] != texts[1]:
        return None
    if texts[0] or (got.dtype.kind == expected.dtype.kind == "i"):
        return got != expected
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf: settled by the equality beside it
        size = np.abs(expected)
        floor = size[np.isfinite(size)].max(initial=0.0) / 1000
        near = np.isfinite(expected) & (np.abs(got - expected) <= tolerance * np.maximum(size, floor))
    return ~(near | (got == expected) | (np.isnan(got) & np.isnan(expected)))


def of_kind(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """``got`` as int64 or float64 like ``expected``, where that changes none of its numbers."""
    kinds = got.dtype.kind + expected.dtype.kind
    if kinds == "if" or (kinds == "fi" and np.isfinite(got).all() and (got == np.round(got)).all()):
        return got.astype(expected.dtype)
    return got


def number(value, digits: int = 4) -> str:
    """One number (or text) in a message: ``-0.12``, ``3``, ``'0101'``."""
    if isinstance(value, np.str_ | str | bytes):
        return repr(str(value))
    if isinstance(value, np.integer | int):
        return str(int(value))
    return f"{float(value) + 0.0:.{digits}g}"  # + 0.0: no minus zero


def apart(got, expected) -> tuple[str, str]:
    """Two different numbers with as many digits as it takes to tell them apart."""
    for digits in range(4, 18):
        texts = number(got, digits), number(expected, digits)
        if texts[0] != texts[1]:
            break
    return texts


def show(value) -> str:
    """A value in a message: arrays up to SHOWN numbers in full, of larger ones the corners; never an address."""
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
