"""Is our importance matrix the one that llama.cpp measures, and does llama.cpp round with our file as we do?

    pip install 'qtutor[gguf,engines]' && python benchmarks/gguf_imatrix.py

(llama-cpp-python is built from source, which takes about nine minutes.) No wheel contains llama-imatrix, so its way of
counting is repeated here: llama.cpp itself runs the decoder as an F32 file and passes every product to a callback,
which adds up x² as ``IMatrixCollector::collect_imatrix`` does. Then gguf-py reads the file that we write, the means are
computed from it as llama-quantize computes them, and ``llama_model_quantize`` has to give the bytes of our exporter.
Prints a table; the exit status is 1 if anything differs.
"""

import argparse
import ctypes
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("GGML_NO_BACKTRACE", "1")

import qtutor
from qtutor.formats import gguf as exporter
from qtutor.gguf import imatrix, read

SAMPLES, LENGTH = 8, 256
MIXES = ("Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_K_S", "IQ4_XS")
CLOSE = 1e-4  # both add up float32 numbers in different orders, after layers that do the same


class GGMLTensor(ctypes.Structure):
    """The beginning of ``struct ggml_tensor`` in ggml.h."""


GGMLTensor._fields_ = [
    ("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4), ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int), ("op_params", ctypes.c_int32 * 16), ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(GGMLTensor) * 10), ("view_src", ctypes.c_void_p), ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p), ("name", ctypes.c_char * 64),
]  # fmt: skip


def measured_by_llama_cpp(llama_cpp, path: Path, ids: torch.Tensor) -> dict[str, tuple[np.ndarray, int]]:
    """For each tensor, while llama.cpp reads ``ids``: sums of x² per column (float64), and the number of tokens."""
    found = {}

    @llama_cpp.ggml_backend_sched_eval_callback
    def look(pointer, ask, _):
        tensor = ctypes.cast(pointer, ctypes.POINTER(GGMLTensor)).contents
        if not tensor.src[0] or not tensor.src[1]:
            return not ask
        weight, x = tensor.src[0].contents, tensor.src[1].contents
        name = weight.name.decode()
        # The weight of a matrix product has several rows; norms are also multiplied with, but they have one row.
        wanted = name.startswith("blk.") and weight.ne[1] > 1 and x.ne[1] >= 16 and x.type == 0
        if ask or not wanted:
            return wanted if ask else True
        shape = x.ne[1] * x.ne[2] * x.ne[3], x.ne[0]
        values = np.ctypeslib.as_array(ctypes.cast(x.data, ctypes.POINTER(ctypes.c_float)), shape).astype(np.float64)
        sums, count = found.get(name, (0, 0))
        found[name] = sums + np.square(values).sum(axis=0), count + len(values)
        return True

    options = llama_cpp.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = LENGTH
    options.n_threads = options.n_threads_batch = 1
    options.type_k = options.type_v = options.flash_attn_type = 0  # F32 keys and values, no flash attention
    options.cb_eval = look
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    context = llama_cpp.llama_init_from_model(model, options)
    batch = llama_cpp.llama_batch_init(LENGTH, 0, 1)
    batch.n_tokens = LENGTH
    for row in ids.tolist():
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        for i, token in enumerate(row):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, i, 1, 0
            batch.logits[i] = True  # otherwise the last block computes only what the last token needs
        if llama_cpp.llama_decode(context, batch) != 0:
            raise SystemExit("llama.cpp could not read the text")
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return found


def means_in(path: Path) -> dict[str, np.ndarray]:
    """The means that llama-quantize computes from an imatrix file, read by gguf-py."""
    from gguf import GGUFReader

    tensors = {tensor.name: np.array(tensor.data).reshape(-1) for tensor in GGUFReader(path).tensors}
    names = [name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2")]
    return {name: tensors[f"{name}.in_sum2"] / np.rint(tensors[f"{name}.counts"]) for name in names}


def quantized_by_llama_cpp(llama_cpp, source: Path, target: Path, file_type: int, means: dict) -> None:
    options = llama_cpp.llama_model_quantize_default_params()
    options.nthread, options.ftype = 1, file_type
    array = (llama_cpp.llama_model_imatrix_data * (len(means) + 1))()  # the last one stays zero: the end
    for entry, (name, values) in zip(array, means.items()):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    options.imatrix = array
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options)) != 0:
        raise SystemExit("llama.cpp refused to quantize")


def main() -> int:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, None)
    model, tokenizer = qtutor.load_decoder(dtype=torch.float32)
    ids = qtutor.evaluate.held_out_tokens(tokenizer).reshape(-1)[: SAMPLES * LENGTH].reshape(SAMPLES, LENGTH)
    with tempfile.TemporaryDirectory() as folder:
        source, ours, theirs, matrix = (Path(folder) / f"{name}.gguf" for name in ("f32", "ours", "theirs", "imatrix"))
        exporter.save(model, source, tokenizer, type="F32")
        found, counted = imatrix.importance(model, ids), measured_by_llama_cpp(llama_cpp, source, ids)
        same_names = found.entries.keys() == counted.keys()
        worst = max(
            float(np.abs(found.importance_of(name, len(sums)) * count / sums - 1).max())
            for name, (sums, count) in counted.items()
        )
        same_counts = all(found.entries[name].counts == count for name, (_, count) in counted.items())
        print(f"| tensors {len(counted)}, names equal: {same_names} | counts equal: {same_counts} | ", end="")
        print(f"largest relative difference of a mean square: {worst:.1e} |")
        imatrix.write(matrix, found)
        fine = same_names and same_counts and worst < CLOSE
        for mix in MIXES:
            exporter.save(model, ours, tokenizer, type=mix, importance=imatrix.read(matrix))
            made = read(ours)
            file_type = int(made.metadata["general.file_type"])
            quantized_by_llama_cpp(llama_cpp, source, theirs, file_type, means_in(matrix))
            wanted = read(theirs)
            equal = sum(
                info.type == made.tensors[name].type and np.array_equal(made.data(name), wanted.data(name))
                for name, info in wanted.tensors.items()
            )
            print(f"| {mix} | {equal} of {len(wanted.tensors)} tensors equal llama_model_quantize's |")
            fine &= equal == len(wanted.tensors) == len(made.tensors)
    print("All is equal." if fine else "NOT ALL IS EQUAL.")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
