"""One side of ``tests/same_as.py``: run the package, and write a digest of every result to a JSON file.

    python -P tests/same_as_digest.py OUT.json ROOT [--quick]     (PYTHONPATH=ROOT, the tree that holds the package)

The file is ``{"about": {...}, "found": {kind: {name: value}}}``. A value is a SHA-256, or the text itself. Two trees
may have their modules in different places. So only names that stay are used: those of ``import qtutor``, ``every`` of
the exercises, ``examine``. If something raises an error, the error is written as FAILED, and is not equal to anything.
``-P`` keeps tests/ off the path, because its folder gguf would hide the library of the same name.
"""

import copy
import hashlib
import importlib
import json
import platform
import re
import sys
import tempfile
import warnings
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
import torch
import transformers

import qtutor

QUICK = "--quick" in sys.argv
FOUND: dict[str, dict[str, str]] = {}
VOCABULARY = 1024  # the embedded decoder's, so that its tokenizer serves all models
FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
ROW = ("name", "shape", "error", "bits_per_weight", "bytes_before", "bytes_after", "output_error", "note")


# --- writing results down ---


def digest(value) -> str:
    """A text that is the same for two values only if their bits, dtype and shape are the same."""
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return f"{value.dtype} {list(value.shape)} {hashlib.sha256(data).hexdigest()}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    return value.hex() if isinstance(value, float) else str(value)


def note(kind: str, name: str, value) -> None:
    names = FOUND.setdefault(kind, {})
    assert name not in names, f"two results are called {kind}: {name}"
    names[name] = digest(value)


@contextmanager
def attempt(kind: str, name: str):
    """An error is written down, and the program goes on."""
    try:
        yield
    except Exception as error:
        FOUND.setdefault(kind, {})[name] = f"FAILED {type(error).__name__}: {error}"


def note_quantized(name: str, quantized) -> None:
    """The parts of a QuantizedTensor, and its dequantized values."""
    note("codes", name, quantized.codes)
    note("scales", name, quantized.scales)
    note("zeros", name, quantized.zeros)
    note("dequantized", name, quantized.dequantize())
    nested = getattr(quantized, "nested", None) or getattr(quantized, "stored_scales", None)  # old name, new name
    if hasattr(nested, "absmax"):
        for part in ("codes", "absmax", "offset"):
            note("nested scales", f"{name} {part}", getattr(nested, part))


# --- models, made here and the same on both sides ---


def small(family: str = "llama", tied: bool = True, grouped: bool = True, dtype=torch.float32, width: int = 64):
    """A random decoder of 2 blocks; noise is added to its biases and norms, so that they matter."""
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2 if grouped else 4,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
    }
    if family == "qwen3":
        sizes["head_dim"] = width // 4
    config = getattr(transformers, f"{FAMILIES[family]}Config")(**sizes)
    torch.manual_seed(0)
    model = getattr(transformers, f"{FAMILIES[family]}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype)


def embedded(dtype=torch.float32, outliers: bool = False):
    model = qtutor.load_decoder(dtype=dtype, device="cpu")[0]
    return qtutor.add_outliers(model) if outliers else model


def text_ids(module: str, count: int) -> torch.Tensor:
    """Tokens of a module of Python's standard library, int64 ``[count]``."""
    text = Path(importlib.import_module(module).__file__).read_text(encoding="utf-8")
    return torch.tensor(TOKENIZER(text, verbose=False)["input_ids"][:count])


def random_ids(samples: int, length: int = 48) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (samples, length), generator=torch.Generator().manual_seed(1))


TOKENIZER = qtutor.load_decoder(device="cpu")[1]
HELD_OUT = text_ids("heapq", 512)


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model(HELD_OUT[None, :64], use_cache=False).logits


# --- whole models ---


def named(options: dict) -> str:
    return " ".join(f"{key}={value}" for key, value in options.items())


def quantized_model(about: str, model, options: dict, calibration=None):
    """Quantize ``model`` by the recipe of these options, write down all results, and return it."""
    name = f"{about}: {named(options)}"
    with attempt("report text", name):
        report = qtutor.quantize(model, qtutor.Recipe(**options), calibration=calibration, progress=False)
        note("report text", name, str(report))
        for row in report.rows:
            note("report rows", f"{name} {row.name}", "; ".join(digest(getattr(row, field)) for field in ROW))
        packed = {path: m for path, m in model.named_modules() if hasattr(m, "quantized") and hasattr(m, "packed")}
        for path, module in packed.items():
            note_quantized(f"{name} {path}", module.quantized())
            stored = dict(module.named_buffers())
            note("stored buffers", f"{name} {path}", sorted(map(digest, stored.values())))
            note("buffer names", f"{name} {path}", sorted(stored))
        for path, tensor in model.state_dict().items():
            owner, _, last = path.rpartition(".")
            if owner not in packed or last == "bias":
                note("norms, biases, other weights", f"{name} {path}", tensor)
        note("logits", name, logits(model))
        note("perplexity", name, qtutor.perplexity(model, HELD_OUT))
    return model


PLAIN = (
    {"method": "nf4"},
    {"method": "nf4", "double": False, "group_size": 32},
    {"method": "fp4"},
    {"method": "fp4", "double": False},
    {"method": "int8"},
    {"method": "rtn", "embeddings": True},
    {"method": "rtn", "lm_head": True, "bits": 8},
    {"method": "rtn", "embeddings": True, "lm_head": True, "bits": 3, "symmetric": True},
    {"method": "nf4", "embeddings": True, "lm_head": True},
)
CALIBRATED = (  # for gptq, awq, awq+gptq: every option at least once
    {},
    {"bits": 3},
    {"bits": 2, "clip": "mse"},
    {"bits": 3, "symmetric": True},
    {"group_size": -1},
    {"group_size": 0},
    {"group_size": 32, "act_order": "none"},
    {"group_size": 16, "act_order": "columns"},
    {"bits": 3, "group_size": 16, "static_groups": True},
    {"bits": 2, "group_size": 16, "act_order": "none", "static_groups": True, "clip": "none"},
    {"clip": "none"},
    {"clip": "mse"},
    {"clip": "output", "damping": 0.1},
    {"propagate": True, "bits": 3, "group_size": 32},
    {"propagate": False, "bits": 2},
    {"duo": True, "bits": 3},
    {"embeddings": True, "lm_head": True, "bits": 3, "clip": "mse"},
)
METHODS = ("gptq", "awq", "awq+gptq")
KINDS = [  # family, tied, grouped
    ("llama", True, True), ("llama", False, False), ("mistral", False, True), ("mistral", True, False),
    ("qwen2", True, True), ("qwen2", False, False), ("qwen3", True, True), ("qwen3", False, False),
]  # fmt: skip


def models() -> None:
    rtn = [
        {"method": "rtn", "bits": bits, "group_size": group_size, "symmetric": symmetric, "clip": clip}
        for bits, group_size, symmetric, clip in product((2, 3, 4, 8), (64, -1, 0), (False, True), ("none", "mse"))
    ]
    for options in rtn[:: 5 if QUICK else 1]:
        quantized_model("small qwen2", small("qwen2"), options)
    for options in PLAIN:
        quantized_model("small llama", small(), options)
    for method, options in list(product(METHODS, CALIBRATED))[:: 5 if QUICK else 1]:
        quantized_model("small llama", small(), {"method": method} | options, random_ids(8))
    for family, tied, grouped in KINDS[:: 3 if QUICK else 1]:
        about = f"small {family}, {'tied' if tied else 'untied'}, {'grouped' if grouped else 'ungrouped'} heads"
        for options in ({"method": "rtn", "bits": 4}, {"method": "nf4"}, {"method": "int8"}):
            quantized_model(about, small(family, tied, grouped), options)
        for method in METHODS:  # enough text for propagation, so the default uses it
            quantized_model(about, small(family, tied, grouped), {"method": method, "bits": 3}, random_ids(24))
    for method in ("rtn", "nf4", "int8", *METHODS):
        options = {"method": method} | ({} if method == "int8" else {"group_size": 32})
        quantized_model("small qwen2, bf16", small("qwen2", dtype=torch.bfloat16), options, random_ids(24))
    of_embedded()


def of_embedded() -> None:
    """The embedded decoder, on 2,048 tokens, and on its own calibration text."""
    some = text_ids("argparse", 2048).reshape(16, 128)
    kinds = {"embedded": {}, "embedded, outliers": {"outliers": True}, "embedded, bf16": {"dtype": torch.bfloat16}}
    for about, how in kinds.items():
        note("logits", about, logits(embedded(**how)))
        for method in ("rtn", "nf4", "int8", *METHODS)[:: 3 if QUICK else 1]:
            quantized_model(about, embedded(**how), {"method": method}, some)
        if not QUICK:
            quantized_model(about, embedded(**how), {"method": "gptq", "bits": 3, "propagate": True}, some)
            quantized_model(about, embedded(**how), {"method": "awq+gptq", "bits": 2, "group_size": 32}, some)
    if not QUICK:
        quantized_model("embedded, default calibration", embedded(), {"method": "gptq", "bits": 3})
        quantized_model("embedded, default calibration", embedded(), {"method": "awq", "bits": 3, "propagate": False})


# --- files ---

MIXES = (
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M",
    "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K", "TQ2_0",
    "TQ1_0", "MXFP4_MOE",
)  # fmt: skip
GUIDED = ("Q4_K_M", "Q2_K_S", "Q3_K_M", "IQ4_NL", "IQ4_XS", "Q4_0", "Q5_0", "Q6_K")
TYPES = (
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K",
    "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4",
)  # fmt: skip

MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")  # of a block


def importance(columns: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(columns) ** 4).astype(np.float32)


def folders(out: Path) -> None:
    """Our own format: every file of the export, and the model that is loaded from it."""
    ids = random_ids(8)
    untied, bf16 = {"family": "qwen2", "tied": False}, {"family": "qwen3", "dtype": torch.bfloat16}
    cases = [
        ({}, {"method": "rtn", "bits": 3}), ({}, {"method": "rtn", "bits": 2, "group_size": 0}),
        (untied, {"method": "rtn", "bits": 4, "symmetric": True, "group_size": -1}), (untied, {"method": "nf4"}),
        (untied, {"method": "int8"}), ({}, {"method": "fp4", "double": False}), (bf16, {"method": "awq+gptq"}),
        (untied, {"method": "rtn", "embeddings": True, "lm_head": True}), (bf16, {"method": "nf4", "lm_head": True}),
        ({"family": "mistral"}, {"method": "gptq", "bits": 3}), ({"family": "qwen2"}, {"method": "awq"}),
        ({}, {"method": "int8", "embeddings": True}),
    ]  # fmt: skip
    for how, options in cases[:: 4 if QUICK else 1]:
        name = f"{named(how) or 'small llama'}: {named(options)}"
        with attempt("export, files", name):
            model = small(**how)
            qtutor.quantize(model, qtutor.Recipe(**options), calibration=ids, progress=False)
            qtutor.export(model, out / "folder", tokenizer=TOKENIZER)
            for path in sorted((out / "folder").iterdir()):
                data = path.read_bytes()
                if path.name == "qtutor.json":  # a recipe may be added there
                    about = {key: value for key, value in json.loads(data).items() if key not in ("recipe", "files")}
                    data = json.dumps(about, sort_keys=True).encode()
                note("export, files", f"{name} {path.name}", data)
            note("export, loaded", name, logits(qtutor.load_quantized(out / "folder", device="cpu")))


def gguf_files(out: Path) -> None:
    """GGUF: every byte of the files, and the models that are loaded from a few of them."""
    model = embedded()
    wide = {
        f"blk.{i}.{kind}.weight": importance(512 if kind == "ffn_down" else 256, 10 * i + number)
        for i in range(2)
        for number, kind in enumerate(MATRICES)
    }
    cases = [("embedded", model, {"type": mix}) for mix in MIXES]
    cases += [("embedded", model, {"type": mix, "importance": wide}) for mix in GUIDED]
    cases += [("embedded", model, {"type": kind, "pure": True}) for kind in TYPES]
    if QUICK:
        cases = [case for case in cases if case[2]["type"] in ("Q4_0", "F16", "Q8_0")]
    for family, tied, grouped in KINDS:
        about = f"{family} {tied} {grouped}"
        cases.append((about, small(family, tied, grouped), {"type": "Q4_K_M"}))
    rounded = quantized_model("small, for GGUF", small("qwen2", width=256), {"method": "nf4"})
    cases.append(("nf4 inside", rounded, {"type": "Q8_0"}))
    for about, model, options in cases:
        guided = "importance" in options
        name = f"{about}: {named({key: 'given' if key == 'importance' else v for key, v in options.items()})}"
        with attempt("GGUF, files", name):
            path = qtutor.export(model, out / "model.gguf", format="gguf", tokenizer=TOKENIZER, **options)
            note("GGUF, files", name, Path(path).read_bytes())
            if about != "embedded" or guided:
                note("GGUF, loaded", name, logits(qtutor.load_quantized(path, device="cpu")))


# --- functions alone ---


def matrices() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    normal = torch.randn(24, 256, generator=generator)
    odd = normal.clone()
    odd[0], odd[1], odd[2], odd[3] = 0, 0.5, odd[2].abs(), -odd[3].abs()  # zeros, a constant, one sign
    odd[4, 7], odd[5, ::64], odd[6] = 60.0, -9.0, 1e-9 * odd[6]  # outliers, nearly nothing
    return {"normal": normal, "odd rows": odd, "bf16": normal.bfloat16(), "wide range": (2 * normal).exp()}


def hessian_of(columns: int, tokens: int, dead: bool) -> torch.Tensor:
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = x * torch.linspace(0.1, 3, columns, dtype=torch.float64) @ (torch.eye(columns) + 0.05).double()
    if dead:
        x[:, 5] = 0
    return x.T @ x


def functions() -> None:
    grids = [qtutor.IntGrid(bits, symmetric) for bits in (2, 3, 4, 5, 8) for symmetric in (False, True)]
    enough, few = hessian_of(256, 1024, False), hessian_of(256, 100, True)
    for (about, weight), grid in product(matrices().items(), grids[:: 5 if QUICK else 1]):
        name = f"{about}, {grid.bits} bits{' symmetric' * grid.symmetric}"

        def alone(function, *arguments, name=name, weight=weight, **options) -> None:
            full = f"{function.__module__.split('.')[-1]}.quantize {name}, {arguments[-1]} {named(options)}"
            options = {key: value for key, value in options.items() if value is not None}  # whole ranges by default
            with attempt("codes", full):
                note_quantized(full, function(weight, *arguments, **options))

        for group_size in (64, -1, 0):
            for clip in (None, "mse"):
                alone(qtutor.rtn.quantize, grid, group_size, clip=clip)
            alone(qtutor.awq.quantize, enough, grid, group_size)
            alone(qtutor.gptq.quantize, few, grid, group_size)  # few: fewer tokens than columns, and one unused column
        for clip, act_order in zip((None, "mse", "output"), ("groups", "columns", "none")):
            alone(qtutor.gptq.quantize, enough, grid, 32, clip=clip, act_order=act_order)
        alone(
            qtutor.gptq.quantize, enough, grid, 64, static_groups=True, block_size=48, damping=0.1, act_order="groups"
        )
    bnb = qtutor.bnb
    for (about, weight), (kind, grid), double in product(
        matrices().items(), {"NF4": bnb.NF4, "FP4": bnb.FP4, "INT8": bnb.INT8}.items(), (False, True)
    ):
        with attempt("codes", f"bnb.quantize {about} {kind} double={double}"):
            note_quantized(f"bnb.quantize {about} {kind} double={double}", bnb.quantize(weight, grid, 64, double))
    for (about, weight), kind, guided in product(matrices().items(), TYPES, (False, True)):
        name = f"{about} {kind}{', importance' * guided}"
        if QUICK and kind not in ("Q4_0", "F16", "Q8_0"):
            continue
        with attempt("GGUF, blocks", name):
            data = qtutor.gguf.encode(weight.float().numpy(), kind, importance(256) if guided else None)
            note("GGUF, blocks", name, data)
            note("GGUF, decoded", name, qtutor.gguf.decode(data, kind))


# --- exercises ---


def numbers(value, digits: int | None = None) -> str:
    """The result of an answer as text: floats in full, or rounded to ``digits`` significant digits."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return numbers(value.double().tolist() if isinstance(value, torch.Tensor) else value.tolist(), digits)
    if isinstance(value, list | tuple | bytes | bytearray):
        return "[" + ", ".join(numbers(part, digits) for part in value) + "]"
    if isinstance(value, bool | int | float | np.number):
        return float(value).hex() if digits is None else f"{float(value) + 0.0:.{digits - 1}e}"
    return repr(value)


def answer(function, arguments: tuple, digits: int | None = None) -> str:
    try:
        return numbers(function(*copy.deepcopy(arguments)), digits)
    except Exception as error:  # some mistakes show only by the error that they raise
        return f"raises {type(error).__name__}"


def exercises() -> None:
    """References to the bit; mistakes to nine digits, because their code may change; every verdict in full."""
    from qtutor.course import exercises
    from qtutor.course.checking import examine

    for exercise in exercises.every():
        note("list of mistakes", exercise.name, "\n".join(exercise.mistakes))
        note("verdicts, references", exercise.name, examine(exercise, exercise.reference).text)
        for number, (about, arguments) in enumerate(exercise.cases()):
            name = f"{exercise.name}, input {number} ({about})"
            note("exercises, inputs", name, "; ".join(numbers(a) for a in arguments if not callable(a))[:100_000])
            note("references", name, answer(exercise.reference, arguments))
        for diagnosis, mistake in exercise.mistakes.items():
            made = [answer(mistake, arguments, digits=9) for _, arguments in exercise.cases()]
            note("mistakes", f"{exercise.name} | {diagnosis}", digest("\n".join(made).encode()))
            if not QUICK:
                note("verdicts, mistakes", f"{exercise.name} | {diagnosis}", examine(exercise, mistake).text)
    if not QUICK:
        answers_of_tests({exercise.name: exercise for exercise in exercises.every()}, examine)


def answers_of_tests(known: dict, examine) -> None:
    """Right and wrong answers in the tests of this tree (each tree has the answers that fit its modules)."""
    root = Path(sys.argv[2])
    of_old = (root / "tests").rglob("test_exercises*.py")
    for path in sorted([*of_old, *(root / "tests" / "course" / "exercises").glob("test_*.py")]):
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        with attempt("verdicts, answers", module):
            for test in list(vars(importlib.import_module(module)).values()):
                for mark in getattr(test, "pytestmark", ()):
                    for row in mark.args[1]:
                        if isinstance(row, tuple) and row[0] in known and callable(row[1]):
                            code = row[1].__name__ if len(row) < 3 else f"{row[1].__name__} ({row[2]})"
                            verdict = examine(known[row[0]], row[1])
                            text = re.sub(r"line \d+", "line N", verdict.text)  # line numbers may change
                            name = f"{row[0]} {code}"
                            while name in FOUND.setdefault("verdicts, answers", {}):
                                name += "'"
                            note("verdicts, answers", name, f"{verdict.passed}: {text}")


def main() -> None:
    out, root = Path(sys.argv[1]), Path(sys.argv[2])
    assert Path(qtutor.__file__).is_relative_to(root), f"{qtutor.__file__} is not in {root}"
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        parts = {"exercises": exercises, "functions": functions, "models": models}
        parts |= {"folders": lambda: folders(scratch), "GGUF": lambda: gguf_files(scratch)}
        for name, part in parts.items():
            with attempt("parts", name):  # a part that fails as a whole is also written down
                part()
                note("parts", name, "done")
    about = {
        "quick": QUICK,
        "machine": f"{platform.node()} {platform.processor() or platform.machine()}",
        "versions": f"python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}, "
        f"transformers {transformers.__version__}",
    }
    out.write_text(json.dumps({"about": about, "found": FOUND}, indent=1))


if __name__ == "__main__":
    main()
