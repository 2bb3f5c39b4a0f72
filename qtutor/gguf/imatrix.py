"""Importance matrices: the mean square of every input column of every tensor, measured, and in llama.cpp's files.

    imatrix = importance(model, token_ids)      # or read("imatrix.gguf")
    data = encode(rows, "Q4_K", imatrix.importance_of("blk.0.attn_q.weight", columns))
    write("imatrix.gguf", imatrix)              # for llama-quantize --imatrix

A file holds sums over tokens and the number of tokens, so that files can be added up. An encoder gets the quotient in
float32, the division that llama-quantize does. Follows llama.cpp's ``tools/imatrix/imatrix.cpp`` (write),
``common/imatrix-loader.cpp`` and ``tools/quantize/quantize.cpp`` (read). As in llama.cpp, only the matrices of the
blocks have entries: the embedding is a lookup, not a multiplication, and llama-imatrix measures the output matrix only
on request.

A fault in a matrix makes a model worse without any sign, so :meth:`Imatrix.importance_of` warns of it and goes on.
llama.cpp refuses a matrix with a NaN or infinity. It hands zeros to the encoders, which then round those columns
arbitrarily, and mentions a missing tensor only among hundreds of lines of log. Left out: adding files up, writing the
older ``.dat`` files (:func:`read` reads them), and putting a BOS token before each piece of text, as llama-imatrix does
for tokenizers that have one: the token ids are used as they are.
"""

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from qtutor.errors import QtutorError, warn
from qtutor.gguf.architecture import tensor_name
from qtutor.gguf.container import GGUFError
from qtutor.gguf.reader import GGUFFile
from qtutor.gguf.reader import read as read_gguf
from qtutor.gguf.writer import Tensor
from qtutor.gguf.writer import write as write_gguf

SUMS, COUNTS = ".in_sum2", ".counts"
WITHOUT_ENTRY = ("token_embd.weight", "output.weight")  # llama.cpp measures neither, so their absence is no news


@dataclass(frozen=True)
class Entry:
    """The sums over the input of a tensor.

    sums: x² summed over all tokens, float32 ``[experts, columns]``. counts: the number of tokens, float32
    ``[experts]``. Only mixtures of experts have more than one row.
    """

    sums: np.ndarray
    counts: np.ndarray

    @property
    def mean_square(self) -> np.ndarray:
        """float32 ``[experts, columns]``, as llama-quantize computes it: ones for an expert that saw no token."""
        counts = np.rint(self.counts).astype(np.float32)[:, None]
        with np.errstate(all="ignore"):  # importance_of warns of values that are no numbers
            return np.where(counts <= 0, np.float32(1), self.sums / counts)


@dataclass(frozen=True)
class Imatrix:
    """Entries by the tensors' GGUF names; the names of the texts, the number of pieces, and the tokens in a piece."""

    entries: dict[str, Entry]
    datasets: list[str] = field(default_factory=list)
    chunk_count: int = 0
    chunk_size: int = 0

    def importance_of(self, name: str, columns: int) -> np.ndarray | None:
        """The ``importance`` for :func:`qtutor.gguf.encode` of the tensor ``name``: float32 ``[columns]``.

        A warning names the tensor in three cases. Columns whose mean square is zero, negative, NaN or infinite get the
        mean of the others (ones if there is none). If no token was counted, all columns get ones. A tensor without
        entry gets ``None``, as in llama.cpp. Raises :class:`QtutorError` for an entry of another width.
        """
        if name not in self.entries:
            if name not in WITHOUT_ENTRY:
                warn(f"{name}: the importance matrix has no entry; all columns count alike.")
            return None
        found = self.entries[name].mean_square
        if found.shape != (1, columns):
            raise QtutorError(
                f"{name}: the importance matrix has {found.shape[1]} columns{_experts(found)}, the tensor has "
                f"{columns}. It was made for another model: make one with this model."
            )
        if self.entries[name].counts[0] < 0.5:
            warn(f"{name}: the importance matrix counted no token; all columns count alike.")
        values = found[0].copy()
        good = np.isfinite(values) & (values > 0)
        if not good.all():
            bad = np.flatnonzero(~good)
            values[bad] = values[good].mean(dtype=np.float64) if good.any() else 1
            warn(
                f"{name}: the importance of column {bad[0]} is {found[0, bad[0]]}, and that of {len(bad)} of {columns} "
                f"columns is zero, negative, NaN or infinite; they count {values[bad[0]]:.3g} each, "
                f"{'the mean of the others' if good.any() else 'all alike'}."
            )
        return values


def _experts(found: np.ndarray) -> str:
    return f" for each of {len(found)} experts, which qtutor does not know" if len(found) != 1 else ""


def importance(model, token_ids, dataset: str = "") -> Imatrix:
    """The importance matrix of a decoder (float, transformers') while it reads ``token_ids``, int64 [samples, length].

    dataset: the name of the text, for the file. Raises :class:`QtutorError` for an unknown family of decoders, and when
    :func:`qtutor.calibration.statistics.layer_inputs` does.
    """
    from qtutor.calibration.statistics import layer_inputs  # imports torch, which reading a file does not need
    from qtutor.guards.ids import samples_of
    from qtutor.guards.model import decoder_of

    model, token_ids = decoder_of(model), samples_of(token_ids)
    entries = {}
    for name, inputs in layer_inputs(model, token_ids).items():
        sums = (inputs.mean_square * inputs.tokens).numpy().astype(np.float32)
        entries[tensor_name(f"{name}.weight", model.config)] = Entry(sums[None], np.array([inputs.tokens], np.float32))
    samples, length = token_ids.shape
    return Imatrix(entries, [dataset] if dataset else [], samples, length)


def write(path: str | Path, imatrix: Imatrix) -> int:
    """Write llama.cpp's imatrix file in its current form, GGUF, and return its size. Errors as in the GGUF writer."""
    metadata = {
        "general.type": "imatrix",
        "imatrix.datasets": list(imatrix.datasets),
        "imatrix.chunk_count": np.uint32(imatrix.chunk_count),
        "imatrix.chunk_size": np.uint32(imatrix.chunk_size),
    }
    tensors = []
    for name, entry in sorted(imatrix.entries.items()):
        for suffix, array in ((SUMS, entry.sums), (COUNTS, entry.counts[:, None])):
            data = np.ascontiguousarray(array, "<f4")
            shape = data.shape if len(data) > 1 else data.shape[1:]  # ggml drops dimensions of 1 at the end
            tensors.append(Tensor(name + suffix, shape, "F32", data.view(np.uint8)))
    return write_gguf(path, metadata, tensors)


def read(path: str | Path) -> Imatrix:
    """Read an imatrix file, GGUF or the older ``.dat``.

    Raises :class:`GGUFError` for a damaged file, a GGUF file that holds something else, sums without counts, and an
    older file that is cut off. The numbers themselves are checked by :meth:`Imatrix.importance_of`.
    """
    try:
        with open(path, "rb") as file:
            if file.read(4) != b"GGUF":
                file.seek(0)
                return _from_dat(file, Path(path).stat().st_size)
    except OSError as error:
        raise GGUFError(f"{path} cannot be read: {error.strerror or error}.") from error
    return _from_gguf(read_gguf(path))


def _from_gguf(file: GGUFFile) -> Imatrix:
    kinds = {"imatrix.datasets": list, "imatrix.chunk_count": np.uint32, "imatrix.chunk_size": np.uint32}
    for key, kind in kinds.items():
        if not isinstance(file.metadata.get(key), kind):
            raise GGUFError(
                f"{file.path}: {key} is {file.metadata.get(key)!r}, expected a {kind.__name__}. This is no "
                f"importance matrix (general.type is {file.metadata.get('general.type')!r}): "
                "make one with llama-imatrix or qtutor.gguf.imatrix."
            )
    entries = {}
    for name in dict.fromkeys(name.removesuffix(SUMS).removesuffix(COUNTS) for name in file.tensors):
        for part in (name + SUMS, name + COUNTS):
            if part not in file.tensors or file.tensors[part].type.name != "F32":
                found = file.tensors[part].type.name if part in file.tensors else "not there"
                raise GGUFError(f"{file.path}: tensor {part!r} is {found}, expected F32. The file is damaged.")
        sums, counts = file.weight(name + SUMS).ravel(), file.weight(name + COUNTS).ravel()
        if sums.size % counts.size:
            raise GGUFError(f"{file.path}: {name!r} has {sums.size} sums for {counts.size} counts: it is damaged.")
        entries[name] = Entry(sums.reshape(counts.size, -1), counts)
    if not entries:
        raise GGUFError(f"{file.path} holds no entry: calibrate again.")
    count, size = (int(file.metadata[f"imatrix.chunk_{what}"]) for what in ("count", "size"))
    return Imatrix(entries, file.metadata["imatrix.datasets"], count, size)


def _from_dat(file: BinaryIO, size: int) -> Imatrix:
    """int32 number of entries; each: length, name, calls, columns, float32 values; then chunks, length, data set."""

    def take(count: int, what: str) -> bytes:
        at = file.tell()
        if not 0 <= count <= size - at:
            raise GGUFError(
                f"{file.name}: {what} at byte {at} takes {count} of the {size - at} bytes that are left. It is no "
                "imatrix file, neither GGUF nor .dat, or it is cut off: fetch or make it again."
            )
        return file.read(count)

    def number(what: str) -> int:
        return struct.unpack("<i", take(4, what))[0]

    entries = {}
    for i in range(number("the number of entries")):
        name = take(number(f"the length of name {i}"), f"name {i}").decode(errors="replace")
        calls, columns = number(f"the calls of {name!r}"), number(f"the columns of {name!r}")
        sums = np.frombuffer(take(4 * columns, f"the values of {name!r}"), "<f4")
        entries[name] = Entry(sums[None], np.array([max(calls, 1)], np.float32))  # as in llama.cpp: 0 calls count as 1
    if not entries:
        raise GGUFError(f"{file.name} holds no entry: it is no imatrix file, or an empty one.")
    chunks = number("the number of chunks") if file.tell() < size else 0
    dataset = take(number("the length of the data set's name"), "that name") if file.tell() < size else b""
    return Imatrix(entries, [dataset.decode(errors="replace")] if dataset else [], chunks, 0)
