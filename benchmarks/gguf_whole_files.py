"""Whole GGUF files: do all tensors of every mix have the type and bytes of llama.cpp's ``llama_model_quantize``?

    pip install 'qtutor[gguf,engines]' && python benchmarks/gguf_whole_files.py --write

(llama-cpp-python is built from source, which takes about nine minutes.) Writes each model of
``tests/gguf/whole_files.py`` as an F32 file and lets llama.cpp quantize it with every mix, with and without an
importance matrix, and to every pure type. Each result is compared with the file that we make: for the embedded decoder
with ``qtutor.formats.gguf.save``, for the others with ``qtutor.gguf.mixes.tensor_types`` and ``qtutor.gguf.encode``.
Prints a table; the exit status is 1 if tensors, types, bytes or metadata differ. ``--write`` puts the table into
``benchmarks/gguf_whole_files.md``, and llama.cpp's results into ``tests/gguf/whole_files.json``. ``--models`` and
``--mixes`` choose a part.
"""

import argparse
import ctypes
import json
import os
import sys
import tempfile
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import qtutor
from qtutor.formats import gguf
from qtutor.gguf import GGUFError, Tensor, encode, read, write
from tests.gguf.whole_files import CASES, DIGESTED, GOLDEN, MODELS, REFUSED, Case, digest, importances, summary, weights

PAGE = Path(__file__).with_suffix(".md")


def write_ours(model: str, case: Case, path: Path) -> None:
    """Write a file as we make it: the embedded decoder with the exporter, the others tensor by tensor."""
    if model == "embedded":
        importance = importances(model) if case.importance else None
        network, tokenizer = decoder()
        gguf.save(network, path, tokenizer, type=case.mix, importance=importance, pure=case.pure)
        return
    tensors = [
        Tensor(name, weights(model)[name].shape, type, encoded(model, name, type, case.importance))
        for name, type in case.types(model).items()
    ]
    stated = {"general.file_type": case.file_type, "general.quantization_version": 2}
    write(path, MODELS[model].metadata() | stated, tensors)


def write_theirs(source: Path, target: Path, case: Case, model: str) -> bool:
    """Let llama.cpp quantize a file with its defaults; returns whether it did."""
    import llama_cpp

    llama_cpp.llama_log_set(silence(), None)
    options = llama_cpp.llama_model_quantize_default_params()
    options.nthread, options.ftype, options.pure = 1, case.file_type, case.pure
    entries = list(importances(model).items()) if case.importance else []
    if entries:
        array = (llama_cpp.llama_model_imatrix_data * (len(entries) + 1))()  # the last one stays zero: the end
        for entry, (name, values) in zip(array, entries):
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        options.imatrix = array
    return llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options)) == 0


@cache
def silence():
    """A log function that writes nothing; it is kept, because llama.cpp continues to call it."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda level, text, data: None)


@cache
def decoder():
    return qtutor.load_decoder()


@cache
def encoded(model: str, name: str, type: str, importance: bool) -> np.ndarray:
    """Our bytes of a tensor: uint8 [rows, bytes of a row]."""
    rows = weights(model)[name]
    vector = importances(model).get(name) if importance else None
    return encode(rows.reshape(-1, rows.shape[-1]), type, vector)


def same_metadata(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def compare(model: str, case: Case, folder: Path) -> tuple[dict, dict, str, bool]:
    """llama.cpp's result as types and digests; how far ours agrees, in words; whether it agrees completely."""
    ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
    they_refuse = not write_theirs(folder / "source.gguf", theirs, case, model)
    try:
        write_ours(model, case, ours)
    except GGUFError:
        return {REFUSED: "llama.cpp"}, {}, "both refuse" if they_refuse else "WE REFUSE", they_refuse
    if they_refuse:
        return {REFUSED: "llama.cpp"}, {}, "THEY REFUSE", False
    ours, theirs = read(ours), read(theirs)
    types, digests, equal_types, equal_bytes = {}, {}, 0, 0
    for name, info in theirs.tensors.items():
        types[name] = info.type.name
        if name in ours.tensors and ours.tensors[name].type == info.type:
            equal_types += 1
            equal_bytes += np.array_equal(ours.data(name), theirs.data(name))
        if types[name] != "F32":
            given = case.importance and name in importances(model)
            digests[f"{name} {types[name]}{', importance' if given else ''}"] = digest(theirs.data(name))
    complete = equal_types == equal_bytes == len(theirs.tensors) == len(ours.tensors)
    same = same_metadata(ours.metadata, theirs.metadata)
    words = f"{equal_types}, {equal_bytes}" + ("" if same else ", OTHER METADATA")
    return summary(types), digests, words, complete and same


def run(models: list[str], cases: list[Case]) -> tuple[dict, str, bool]:
    """Everything for the JSON file, the table, and whether everything is equal."""
    made, cells, complete = {}, {case: [] for case in cases}, True
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            write_ours(model, Case("F32"), Path(folder) / "source.gguf")
            made[model] = {"types": {}, "digests": {}}
            for case in cases:
                types, digests, cell, equal = compare(model, case, Path(folder))
                made[model]["types"][str(case)] = types
                if model in DIGESTED:
                    made[model]["digests"] |= digests
                cells[case].append(cell)
                complete &= equal
            encoded.cache_clear()
    head = ["mix"] + [f"{model} ({len(MODELS[model].shapes())})" for model in models]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join([str(case), *cells[case]]) + " |" for case in cases]
    return made, "\n".join(lines), complete


def page(table: str, complete: bool) -> str:
    about = "\n".join(f"- {name}: {model.about}" for name, model in MODELS.items())
    return f"""# Whole GGUF files against llama.cpp

Made by `python benchmarks/gguf_whole_files.py --write` with llama-cpp-python {version("llama-cpp-python")}. A cell says
how many tensors (of as many as the head of its column says) have the type, and how many the bytes, that
`llama_model_quantize` gave them. "importance": with an importance matrix; "pure": one type for all matrices.

{about}

{table}

{"All tensors, types, bytes and metadata are equal." if complete else "NOT ALL IS EQUAL."}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--mixes", nargs="*", help="mixes and (pure) types")
    options = parser.parse_args()
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    cases = [case for case in CASES if options.mixes is None or case.mix in options.mixes]
    made, table, complete = run(options.models, cases)
    print(table)
    print("All tensors, types, bytes and metadata are equal." if complete else "NOT ALL IS EQUAL.")
    if options.write and (set(options.models) != set(MODELS) or options.mixes is not None):
        parser.error("--write needs all models and mixes")
    if options.write:
        PAGE.write_text(page(table, complete))
        made["made with"] = f"llama-cpp-python {version('llama-cpp-python')}"
        GOLDEN.write_text(json.dumps(made, indent=1) + "\n")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
