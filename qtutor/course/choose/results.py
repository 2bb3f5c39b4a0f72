"""The results that ``benchmarks/claims.py`` stored: models with their losses, and each claim's own experiment."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

STORED = Path(__file__).parents[1] / "stored" / "claims.json"
EMBEDDED, SMOLLM2 = "embedded", "smollm2"
NAMES = {EMBEDDED: "the embedded decoder", SMOLLM2: "SmolLM2"}


@dataclass(frozen=True)
class Model:
    """One stored model. nbytes: of all weights. kl, rise (of perplexity, in per cent), flips: means over the draws of
    calibration text; the errors are standard errors over windows. draws: the KL of each draw; a single one if the
    method needs no text. tasks: kind -> share of right answers, if questions were asked.
    """

    name: str
    family: str
    nbytes: int
    kl: float
    kl_error: float
    rise: float
    rise_error: float
    flips: float
    draws: tuple[float, ...]
    tasks: Mapping[str, float]

    @property
    def spread(self) -> float:
        """The standard deviation of KL over the draws; 0 for one draw."""
        return statistics.stdev(self.draws) if len(self.draws) > 1 else 0.0


class Stored:
    """The stored numbers of one float model."""

    def __init__(self, document: Mapping, source: str):
        self.source, self.document = source, document.get(source, {})
        self.models = {name: _model(name, row) for name, row in self.document.get("models", {}).items()}

    def found(self, claim: str) -> Mapping | None:
        """The result of the experiment of ``claim``; ``None`` if it was not run."""
        return self.document.get("claims", {}).get(claim)

    def listed(self, names: Sequence[str]) -> list[Model]:
        """The stored models among ``names``, in the order of ``names``."""
        return [self.models[name] for name in names if name in self.models]


def _model(name: str, row: Mapping) -> Model:
    def mean(key: str) -> float:
        return statistics.fmean(draw[key] for draw in row["draws"])

    draws = tuple(draw["kl"] for draw in row["draws"])
    numbers = {key: mean(key) for key in ("kl", "kl_error", "rise", "rise_error", "flips")}
    return Model(name, row["family"], row["nbytes"], draws=draws, tasks=row.get("tasks", {}), **numbers)


def document() -> dict:
    """The whole file; an empty dict if nothing was measured yet."""
    return json.loads(STORED.read_text(encoding="utf-8")) if STORED.is_file() else {}


@cache
def stored(source: str = EMBEDDED) -> Stored:
    """The stored numbers of ``source``, :data:`EMBEDDED` or :data:`SMOLLM2`."""
    return Stored(document(), source)
