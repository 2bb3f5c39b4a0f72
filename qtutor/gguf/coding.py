"""``encode`` and ``decode``: checks, threads and the way from a name to the function that knows the type."""

import importlib

import numpy as np

from qtutor.errors import QtutorError
from qtutor.gguf import decoding
from qtutor.gguf.layout import TYPES, BlockType
from qtutor.gguf.pieces import in_pieces

_MODULES = {
    "simple": ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    "k_affine": ("Q2_K", "Q4_K", "Q5_K"),
    "k_signed": ("Q3_K", "Q6_K"),
    "iq4": ("IQ4_NL", "IQ4_XS"),
    "ternary": ("TQ1_0", "TQ2_0"),
    "mxfp4": ("MXFP4",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
_DECODED_AT_ONCE = 1 << 18  # weights: numpy's temporaries then stay in the cache
_HALF_LIMIT = 65520  # from here on a number rounds to float16's infinity


def find_type(name: str) -> BlockType:
    """The type called ``name``; raises :class:`QtutorError` that lists the known ones."""
    if name not in TYPES:
        raise QtutorError(f"type = {name!r} is no GGUF block type that qtutor encodes. Choose from {', '.join(TYPES)}.")
    return TYPES[name]


def encode(rows: np.ndarray, type: str, importance: np.ndarray | None = None) -> np.ndarray:
    """Quantize ``rows [rows, columns]`` (float32) to the bytes that llama.cpp writes: uint8 ``[rows, bytes of a row]``.

    importance: mean square of each input column, float32 ``[columns]`` (an importance matrix's row), which weighs the
    errors; types without a search ignore it, as in llama.cpp. F32 has nothing to encode: the bytes are a view of
    ``rows``, read only. Raises :class:`QtutorError` for NaN and infinities, a
    width that the block size does not divide, a weight whose scale would leave float16, an unknown type, and an
    importance of the wrong length or with NaN, infinite or negative entries.

    >>> encode(np.zeros((2, 64), np.float32), "Q4_0").shape
    (2, 36)
    """
    block_type = find_type(type)
    rows = _check_rows(rows, block_type)
    if importance is not None:
        importance = _check_importance(importance, rows.shape[1])
    if type == "F32":
        in_pieces(lambda first, last: _look_through(rows[first:last], first, block_type), *rows.shape)
        return rows.astype("<f4", copy=False).view(np.uint8)
    width = rows.shape[1] // block_type.values * block_type.nbytes
    data = np.empty((len(rows), width), np.uint8)
    if data.size:
        _encode_pieces(rows, importance, block_type, data)
    return data


def decode(data: np.ndarray, type: str) -> np.ndarray:
    """The weights that ``data`` (uint8 ``[rows, bytes of a row]``) stands for: float32 ``[rows, columns]``.

    Equal, bit for bit, to llama.cpp's. Raises :class:`QtutorError` for an unknown type and a width that is no whole
    number of blocks.

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
            f"rows of {data.shape[1]} bytes are no whole number of {type} blocks, which take {block_type.nbytes} bytes "
            f"for {block_type.values} weights."
        )
    columns = data.shape[1] // block_type.nbytes * block_type.values
    weights = np.empty((len(data), columns), np.float32)
    function, step = getattr(decoding, type.lower()), max(1, _DECODED_AT_ONCE // max(columns, 1))
    for first in range(0, len(data) if columns else 0, step):
        blocks = np.ascontiguousarray(data[first : first + step]).reshape(-1, block_type.nbytes)
        with np.errstate(all="ignore"):  # a damaged file may hold infinite scales: they are shown as they are
            weights[first : first + step] = function(blocks).reshape(-1, columns)
    return weights


def _encode_pieces(rows: np.ndarray, importance: np.ndarray | None, block_type: BlockType, data: np.ndarray) -> None:
    """Encode ``rows`` into ``data``, every thread a piece of the rows at a time."""
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
        if missing:  # the searches take 16 blocks at a time: fill up with zeros
            padded = np.zeros((len(blocks) + missing, block_type.nbytes), np.uint8)
            kernel(_read_only(np.pad(blocks, ((0, missing), (0, 0)))), weights, padded)
            target[:] = padded[: len(blocks)]
        else:
            kernel(blocks, weights, target)
        _check_scales(target, blocks, first * rows.shape[1], rows.shape[1], block_type, len(weights) > 0)

    in_pieces(work, *rows.shape)


def _look_through(rows: np.ndarray, first: int, block_type: BlockType) -> None:
    """Refuse broken values."""
    # One NaN or infinity spoils the sum. Finite ones may overflow it, too; then a closer look finds nothing.
    # einsum rather than sum: it needs one pass and no temporary array.
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
    """The largest weight worth trying; a search may shorten a range a little, so :func:`_check_scales` decides."""
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
    """A view that cannot be written to: another type to numba, and the one that weights mapped from a file have."""
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
            f"(a mean square); {bad.size} of {columns} are not. Calibrate again, or leave importance out."
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
    """Refuse blocks in which a float16 became infinite; the first weight of ``blocks`` is number ``start`` of all."""
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
        "leave float16 (65504). Check the checkpoint for broken values, or store this tensor as F32."
        + (" Or is it the importance? Where few columns of a block have any, the search can lose its way." * weighted)
    )
