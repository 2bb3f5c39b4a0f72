"""How much worse is the built-in calibration text than text of the kind that the model reads later?

    python benchmarks/calibration_text.py SRC            # a table; with --write into calibration_text.md beside it,
                                                         # and for chapter 11 into qtutor/course/stored/

SRC is quantized by GPTQ four times: calibrated with English prose, with Python, with the built-in text (half of each),
and not calibrated at all (rounded to nearest). KL divergence to the float model is measured on prose and on Python that
is in none of these texts. "Matched" is calibration with text of the kind on which KL is measured.

Both kinds of text come with the interpreter: Python is the standard library's modules, and prose is the docstrings in
them. Each docstring is used either to calibrate or to measure. The built-in text contains neither these docstrings nor
the modules on which KL is measured.
"""

import argparse
import ast
import copy
import json
import time
from pathlib import Path

import torch

import qtutor
from qtutor.calibration.builtin import builtin_calibration
from qtutor.decoder import corpus
from qtutor.guards.ids import evenly

LENGTH, SAMPLES = 256, 32
WINDOW, WINDOWS = 512, 10
LONG = 400  # characters; a docstring of this length is prose, not a single line
STORED = Path(__file__).resolve().parents[1] / "qtutor" / "course" / "stored" / "calibration_text.json"


def docstrings(names: list[str]) -> str:
    """The long docstrings of modules of the standard library, as paragraphs."""
    found = {}
    for name in names:
        source = (corpus.standard_library() / name).read_text(encoding="utf-8", errors="ignore")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                if len(text) > LONG and ">>>" not in text:
                    found[text] = None
    return "\n\n".join(found)


def modules() -> list[str]:
    """The names of the standard library's own modules, without packages."""
    return sorted(path.name for path in corpus.standard_library().glob("*.py") if not path.name.startswith("_"))


def rows(tokenizer, text: str, length: int, count: int) -> torch.Tensor:
    """``text`` as token ids ``[count, length]``, evenly spread over it."""
    return evenly(torch.tensor(tokenizer(text, verbose=False)["input_ids"]), length, count)


def texts(tokenizer) -> tuple[dict, dict]:
    """The texts to calibrate with and those to measure on, by name."""
    names = modules()
    prose = {part: docstrings([name for number, name in enumerate(names) if (number % 3 == 0) == (part == "measured")])
             for part in ("calibrates", "measured")}  # fmt: skip
    code = "\n\n".join(corpus.training_modules()[::7])
    calibrates = {
        "prose": rows(tokenizer, prose["calibrates"], LENGTH, SAMPLES),
        "Python": rows(tokenizer, code, LENGTH, SAMPLES),
        "built-in": builtin_calibration(tokenizer, LENGTH, SAMPLES).token_ids,
        "none": None,
    }
    measured = {
        "prose": rows(tokenizer, prose["measured"], WINDOW, WINDOWS),
        "Python": rows(tokenizer, corpus.held_out_code(), WINDOW, WINDOWS),
    }
    return calibrates, measured


def measure(source: str, bits: int) -> dict:
    """A :class:`qtutor.evaluate.Comparison` for each calibration and each text."""
    reference, tokenizer = qtutor.load(source, dtype=torch.float32)
    calibrates, measured = texts(tokenizer)
    found = {}
    for name, ids in calibrates.items():
        begin, model = time.monotonic(), copy.deepcopy(reference)
        recipe = qtutor.Recipe(method="rtn" if ids is None else "gptq", bits=bits, group_size=64)
        qtutor.quantize(model, recipe, calibration=ids, progress=False)
        for text, tokens in measured.items():
            found[name, text] = qtutor.evaluate.compare(model, reference, tokens)
        print(f"{bits} bits, {name}: {time.monotonic() - begin:.0f} s", flush=True)
    return found


def table(results: dict[int, dict]) -> str:
    """A Markdown table: KL with its standard error, and its ratio to the KL of matched text."""
    lines = [
        "| bits | calibrated with | KL on prose | of matched | KL on Python | of matched |",
        "|---|---|---|---|---|---|",
    ]
    for bits, found in results.items():
        for name in dict.fromkeys(name for name, _ in found):
            cells = []
            for text in ("prose", "Python"):
                one = found[name, text]
                cells += [f"{one.kl:.4f} ± {one.kl_error:.4f}", f"{one.kl / found[text, text].kl:.2f}"]
            label = "nothing (rounded to nearest)" if name == "none" else f"{name} text" if name == "built-in" else name
            lines.append(f"| {bits} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def stored(source: str, results: dict[int, dict]) -> str:
    """The same numbers as JSON, with a row for each width, calibration and text."""
    rows = [
        {"bits": bits, "calibrated": name, "measured": text, "kl": round(one.kl, 4), "kl_error": round(one.kl_error, 4)}
        for bits, found in results.items()
        for (name, text), one in found.items()
    ]
    about = {"source": Path(source).name, "samples": SAMPLES, "length": LENGTH, "windows": WINDOWS, "window": WINDOW}
    return json.dumps(about | {"rows": rows}, indent=1) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--write", action="store_true", help="into calibration_text.md")
    options = parser.parse_args()
    results = {bits: measure(options.source, bits) for bits in options.bits}
    text = table(results)
    print(text)
    if options.write:
        STORED.write_text(stored(options.source, results), encoding="utf-8")
        head = (
            f"GPTQ, groups of 64, {SAMPLES} samples of {LENGTH} tokens; KL over {WINDOWS} windows of {WINDOW} tokens."
        )
        Path(__file__).with_suffix(".md").write_text(
            f"# The built-in calibration text against matched text\n\nWritten by `benchmarks/calibration_text.py` for "
            f"{Path(options.source).name}. {head}\n\n{text}\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
