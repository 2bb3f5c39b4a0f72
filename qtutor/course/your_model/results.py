"""Measurements that take too long for a chapter, made beforehand by ``benchmarks/your_model.py`` and stored.

:data:`CANDIDATES` says what was measured. The stored rows contain their recipes, so a test notices if the two differ.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from qtutor.recipe import Recipe

STORED = Path(__file__).parents[1] / "stored"
RESULTS = STORED / "your_model.json"
MATCHED = STORED / "calibration_text.json"
ALL = {"embeddings": True, "lm_head": True}  # the embedding has a fifth of the weights


@dataclass(frozen=True)
class Candidate:
    """A model that was measured: a folder, described by its recipe, or a .gguf file, described by the options of its
    export. conversations: whether half of the calibration text was in the chat template.
    """

    recipe: Recipe | None = None
    file: Mapping[str, object] | None = None
    conversations: bool = False


CHAT = "GPTQ 4, conversations"
CANDIDATES = {
    "RTN 4": Candidate(Recipe("rtn", 4, **ALL)),
    "GPTQ 4": Candidate(Recipe("gptq", 4, **ALL)),
    CHAT: Candidate(Recipe("gptq", 4, **ALL), conversations=True),
    "Q4_0 file": Candidate(file={"type": "Q4_0"}),
    "RTN 3": Candidate(Recipe("rtn", 3, **ALL)),
    "GPTQ 3.5": Candidate(Recipe("gptq", 3.5, **ALL)),
    "GPTQ 3": Candidate(Recipe("gptq", 3, **ALL)),
}
QUESTIONS = {
    "a fact": "What is the capital of France?",
    "a sum": "What is 7 + 5?",
    "some code": "Write a Python function that adds two numbers.",
}


@dataclass(frozen=True)
class Row:
    """One stored model. nbytes: of its weights. answers: question -> the model's answer. chat_kl: KL on conversations.
    The other fields are as in a Comparison, on English and Python.
    """

    name: str
    nbytes: int
    kl: float
    kl_error: float
    perplexity: float
    loss_percent: float
    flips: float
    chat_kl: float
    chat_kl_error: float
    answers: Mapping[str, str]


def described(candidate: Candidate) -> dict:
    """A candidate in types that JSON can hold."""
    return json.loads(json.dumps(asdict(candidate)))


def stored_rows() -> dict[str, Row]:
    """The stored models by name, in the order of :data:`CANDIDATES`."""
    found = document()["rows"]
    return {name: Row(name, **{key: found[name][key] for key in _NUMBERS}) for name in CANDIDATES if name in found}


def document() -> dict:
    """The whole file: ``float`` (the float model's own numbers), ``text``, ``rows``."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def matched_rows() -> list[dict]:
    """What ``benchmarks/calibration_text.py`` stored: rows with ``bits``, ``calibrated``, ``measured``, ``kl`` and
    ``kl_error``.
    """
    return json.loads(MATCHED.read_text(encoding="utf-8"))["rows"]


_NUMBERS = (
    *("nbytes", "kl", "kl_error", "perplexity", "loss_percent", "flips"),
    *("chat_kl", "chat_kl_error", "answers"),
)
