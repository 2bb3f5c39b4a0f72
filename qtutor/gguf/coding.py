"""``encode`` and ``decode``: check the input, find the function for the type, share the rows among threads."""

import importlib

import numpy as np

from qtutor.errors import QtutorError
from qtutor.gguf import decoding
from qtutor.gguf.layout import TYPES, BlockType
from qtutor.threads import in_steps, thread_count

_MODULES = {
    "simple": ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    "k_affine": ("Q2_K", "Q4_K", "Q5_K"),
    "k_signed": ("Q3_K", "Q6_K"),
    "iq4": ("IQ4_NL", "IQ4_XS"),
    "ternary": ("TQ1_0", "TQ2_0"),
    "mxfp4": ("MXFP4",),
    "nvfp4": ("NVFP4",),
    "few_bits": ("Q1_0", "Q2_0"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
PIECE = 1 << 18  # values that a thread encodes at a time: they stay in its cache from the check to the last pass
ROWS = 16  # the rows of a piece are a multiple of this, so that the encoders' lanes are filled
_DECODED_AT_ONCE = 1 << 18  # weights; numpy's temporary arrays then fit into the cache
_HALF_LIMIT = 65520  # float16 rounds this number, and every larger one, to infinity


def find_type(name: str) -> BlockType:
    """The type called ``name``. Raises :class:`QtutorError`, which lists the known types, for any other name."""
    if name not in TYPES:
        raise QtutorError(f"type = {name!r}: qtutor encodes no GGUF type of this name. Choose from {', '.join(TYPES)}.")
    return TYPES[name]


def encode(rows: np.ndarray, type: str, importance: np.ndarray | None = None) -> np.ndarray:
    """Quantize ``rows [rows, columns]`` (float32) to the bytes that llama.cpp writes: uint8 ``[rows, bytes of a row]``.

    importance: the mean square of each input column, float32 ``[columns]`` (a row of an importance matrix). It weighs
    the errors; types without a search ignore it, as in llama.cpp. F32 encodes nothing: the result is a read-only view
    of ``rows``. Raises :class:`QtutorError` for NaN and infinities, for a width that the block size does not divide,
    for a weight whose scale does not fit into float16, for an unknown type, and for an importance that has the wrong
    length or NaN, infinite or negative entries.

    >>> encode(np.zeros((2, 64), np.float32), "Q4_0").shape
    (2, 36)
    """
    block_type = find_type(type)
    rows = _check_rows(rows, block_type)
    if importance is not None:
        importance = _check_importance(importance, rows.shape[1])
    if type == "F32":
        _in_pieces(lambda first, last: _look_through(rows[first:last], first, block_type), *rows.shape)
        return rows.astype("<f4", copy=False).view(np.uint8)
    width = rows.shape[1] // block_type.values * block_type.nbytes
    data = np.empty((len(rows), width), np.uint8)
    if data.size:
        _encode_pieces(rows, importance, block_type, data)
    return data


def decode(data: np.ndarray, type: str) -> np.ndarray:
    """Decode ``data`` (uint8 ``[rows, bytes of a row]``) to weights, float32 ``[rows, columns]``.

    The weights equal llama.cpp's bit for bit. Raises :class:`QtutorError` for an unknown type and for rows that do not
    consist of whole blocks.

    >>> decode(encode(np.ones((1, 32), np.float32), "Q8_0"), "Q8_0")[0, :3]
    array([0.999876, 0.999876, 0.999876], dtype=float32)
    """
    block_type = find_type(type)
    data = np.asarray(data)
    if data.ndim != 2 or data.dtype != np.uint8:
        raise QtutorError(
            f"data is {data.dtype} of shape {list(data.shape)}: decode takes uint8 [rows, bytes of a row]."
        )
    if data.shape[1] % block_type.nbytes:
        raise QtutorError(
            f"rows of {data.shape[1]} bytes do not consist of whole {type} blocks, which take {block_type.nbytes} "
            f"bytes for {block_type.values} weights."
        )
    columns = data.shape[1] // block_type.nbytes * block_type.values
    weights = np.empty((len(data), columns), np.float32)
    function, step = getattr(decoding, type.lower()), max(1, _DECODED_AT_ONCE // max(columns, 1))
    for first in range(0, len(data) if columns else 0, step):
        blocks = np.ascontiguousarray(data[first : first + step]).reshape(-1, block_type.nbytes)
        with np.errstate(all="ignore"):  # a damaged file may hold infinite scales; show them without a warning
            weights[first : first + step] = function(blocks).reshape(-1, columns)
    return weights


def _encode_pieces(rows: np.ndarray, importance: np.ndarray | None, block_type: BlockType, data: np.ndarray) -> None:
    """Encode ``rows`` into ``data``; each thread encodes one piece of the rows at a time."""
    lanes = _import("lanes")
    kernel = getattr(_import(_MODULE_OF[block_type.name]), block_type.name.lower())
    if importance is None or not block_type.importance:
        importance = np.zeros(0, np.float32)
    weights = importance.reshape(-1, block_type.values)
    limit = _limit(block_type)

    def work(first: int, last: int) -> None:
        if lanes.largest_bits(rows[first:last]) > limit.view(np.int32):
            _check_finite(rows[first:last], first, block_type, limit)
        blocks = rows[first:last].reshape(-1, block_type.values)
        target = data[first:last].reshape(-1, block_type.nbytes)
        missing = -len(blocks) % lanes.LANES
        if missing:  # the searches take 16 blocks at a time, so add blocks of zeros
            padded = np.zeros((len(blocks) + missing, block_type.nbytes), np.uint8)
            kernel(_read_only(np.pad(blocks, ((0, missing), (0, 0)))), weights, padded)
            target[:] = padded[: len(blocks)]
        else:
            kernel(blocks, weights, target)
        _check_scales(target, blocks, first * rows.shape[1], rows.shape[1], block_type, len(weights) > 0)

    _in_pieces(work, *rows.shape)


def _in_pieces(work, rows: int, columns: int) -> None:
    in_steps(work, rows, max(1, PIECE // max(columns, 1) // ROWS) * ROWS, thread_count())


def _look_through(rows: np.ndarray, first: int, block_type: BlockType) -> None:
    """Refuse NaN and infinities."""
    # One NaN or infinity makes the sum NaN or infinite. Finite values may overflow the sum, too; then the closer check
    # finds nothing. einsum reads the rows once and needs no temporary array.
    if not np.isfinite(np.einsum("rc->", rows)):
        _check_finite(rows, first, block_type, np.inf)


def _import(module: str):
    try:
        return importlib.import_module(f"qtutor.gguf.{module}")
    except ModuleNotFoundError as error:
        if error.name != "numba":
            raise
        raise QtutorError(
            "encoding GGUF blocks needs numba, which is not installed here: pip install 'qtutor[gguf]'. Decoding works "
            "without it."
        ) from None


def _limit(block_type: BlockType) -> np.float32:
    """The largest weight that may fit. A search may shorten the range a little, so :func:`_check_scales` decides."""
    if block_type.name == "BF16":
        return np.int32(0x7F7F7FFF).view(np.float32)
    if block_type.largest:
        return np.float32(block_type.largest * _HALF_LIMIT * (2 if block_type.importance else 1))
    return np.finfo(np.float32).max


def _check_rows(rows: np.ndarray, block_type: BlockType) -> np.ndarray:
    rows = np.asarray(rows)
    if rows.ndim != 2 or rows.dtype != np.float32:
        raise QtutorError(f"rows is {rows.dtype} of shape {list(rows.shape)}: encode takes float32 [rows, columns].")
    if rows.shape[1] % block_type.values:
        fitting = [name for name, other in TYPES.items() if rows.shape[1] % other.values == 0]
        raise QtutorError(
            f"rows of {rows.shape[1]} weights cannot be cut into {block_type.name} blocks of {block_type.values}. "
            f"Types that fit this width: {', '.join(fitting)}."
        )
    return _read_only(np.require(rows, requirements="CA"))


def _read_only(array: np.ndarray) -> np.ndarray:
    """A read-only view. numba compiles for this type; weights that are mapped from a file have the same type."""
    view = array.view()
    view.flags.writeable = False
    return view


def _check_importance(importance: np.ndarray, columns: int) -> np.ndarray:
    importance = np.array(importance, np.float32)
    if importance.shape != (columns,):
        raise QtutorError(
            f"importance has shape {list(importance.shape)}, the rows have {columns} columns: give one number a column."
        )
    bad = np.flatnonzero(~(np.isfinite(importance) & (importance >= 0)))
    if bad.size:
        raise QtutorError(
            f"importance of column {bad[0]} is {importance[bad[0]]}: it has to be a finite number that is not negative "
            f"(a mean square). {bad.size} of {columns} columns have no such number. Calibrate again, or "
            "leave importance out."
        )
    return importance


def _check_finite(rows: np.ndarray, first: int, block_type: BlockType, limit: float) -> None:
    """Name the first weight that is NaN, infinite or beyond ``limit``."""
    bad = np.argwhere(~(np.abs(rows) <= limit))
    if not bad.size:
        bad = np.argwhere(~np.isfinite(rows))
    if bad.size:
        row, column = bad[0]
        value = rows[row, column]
        if np.isfinite(value):
            raise _too_large(value, first + row, column, block_type)
        raise QtutorError(
            f"the weight in row {first + row}, column {column} is {value}: no block can hold it. Check the checkpoint "
            "for broken values."
        )


def _check_scales(
    target: np.ndarray, blocks: np.ndarray, start: int, columns: int, block_type: BlockType, weighted: bool
) -> None:
    """Refuse blocks in which a float16 became infinite; ``start`` is the number of the first weight in ``blocks``."""
    for at in block_type.offsets("f16"):
        bad = np.flatnonzero(target[:, at + 1] & 0x7C == 0x7C)
        if bad.size:
            block = bad[0]
            inside = int(np.abs(blocks[block]).argmax())
            row, column = divmod(start + int(block) * block_type.values + inside, columns)
            raise _too_large(blocks[block, inside], row, column, block_type, weighted)


def _too_large(value: float, row: int, column: int, block_type: BlockType, weighted: bool = False) -> QtutorError:
    return QtutorError(
        f"the weight {value:.6g} in row {row}, column {column} is too large for {block_type.name}: its scale would "
        "be larger than float16 holds (65504). Check the checkpoint for broken values, or store this tensor as F32."
        + (" The importance may be the cause, too: if few columns of a block have any, the search can fail." * weighted)
    )
