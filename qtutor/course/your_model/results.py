"""What takes too long for a chapter, measured beforehand by ``benchmarks/your_model.py`` and stored.

:data:`CANDIDATES` says what was measured. The stored rows carry their recipes, so a test sees when the two part.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qtutor.recipe import Recipe

STORED = Path(__file__).parents[1] / "stored"
RESULTS = STORED / "your_model.json"
CALIBRATIONS = STORED / "calibration_text.json"
ALL = {"embeddings": True, "lm_head": True}  # the embedding has a fifth of the weights

# What the chapter compares: folders by their recipes, files by the options of their export.
CANDIDATES: dict[str, Recipe | dict] = {
    "RTN 4": Recipe("rtn", 4, **ALL),
    "GPTQ 4": Recipe("gptq", 4, **ALL),
    "RTN 3": Recipe("rtn", 3, **ALL),
    "GPTQ 3": Recipe("gptq", 3, **ALL),
    "GPTQ 3.5": Recipe("gptq", 3.5, **ALL),
    "Q4_0 file": {"type": "Q4_0"},
    "Q4_K_M file": {"type": "Q4_K_M"},
}
QUESTIONS = {
    "a fact": "What is the capital of France?",
    "a sum": "What is 7 + 5?",
    "some code": "Write a Python function that adds two numbers.",
}


@dataclass(frozen=True)
class Row:
    """One stored model. nbytes: of its weights. answers: question -> what it said; the rest as in a Comparison."""

    name: str
    nbytes: int
    kl: float
    kl_error: float
    perplexity: float
    loss_percent: float
    flips: float
    answers: Mapping[str, str]


def described(candidate: Recipe | dict) -> dict:
    """A candidate in types that JSON can hold."""
    made = candidate.as_dict() if isinstance(candidate, Recipe) else candidate
    return json.loads(json.dumps(made))


def stored_rows() -> dict[str, Row]:
    """The stored models by name, in the order of :data:`CANDIDATES`."""
    found = document()["rows"]
    return {name: Row(name, **{key: found[name][key] for key in _NUMBERS}) for name in CANDIDATES if name in found}


def document() -> dict:
    """The whole file: ``float`` (the float model's own numbers), ``text``, ``rows``."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def stored_calibrations() -> list[dict]:
    """Rows with ``bits``, ``calibrated``, ``measured``, ``kl`` and ``kl_error``."""
    return json.loads(CALIBRATIONS.read_text(encoding="utf-8"))["rows"]


_NUMBERS = ("nbytes", "kl", "kl_error", "perplexity", "loss_percent", "flips", "answers")
