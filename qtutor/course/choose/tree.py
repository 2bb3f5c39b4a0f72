"""The decision at the end: questions that lead to measured rows, and the best measured rows for each engine.

:mod:`qtutor.formats.targets` says which engine accepts which recipe. So a row is never recommended for an engine that
would not load it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from qtutor.course.choose.candidates import CANDIDATES, Candidate
from qtutor.course.choose.results import Model, Stored
from qtutor.errors import QtutorError
from qtutor.formats.targets import Shape, pick
from qtutor.formats.ways import RAN, TARGETS

FLOAT = "float"
# Classes of sizes, by the bits of a weight in the blocks, without scales.
SIZES = {"5 to 8 bits": (4.5, 9), "4 bits": (3.5, 4.5), "under 4 bits": (0, 3.5)}


@dataclass(frozen=True)
class Branch:
    """One branch of the tree: the condition, the choice, the measured row that shows its cost, and the reason."""

    when: str
    take: str
    row: str
    why: str


BRANCHES = (
    Branch("It runs behind someone's API, or fits in 16 bits with room to spare", "16 bits", FLOAT, "nothing is lost"),
    Branch("You want to train it", "NF4, and adapters beside it", "NF4", "a training step moves no code"),
    Branch("Exact answers count: sums, code, long chains", "8 bits", "RTN 8", "exact answers fall first"),
    Branch("A server with memory for 8 bits", "int8, or FP8 where int8 is missing", "int8", "products in 8 bits"),
    Branch("A laptop, or CPU and GPU together", "a Q4_K_M file", "Q4_K_M file", "llama.cpp reads its own types"),
    Branch("Too large even in 4 bits", "GPTQ in 3 bits, or a smaller model", "GPTQ 3", "each further bit costs more"),
    Branch("A GPU that multiplies 4-bit floats", "GPTQ on NVFP4", "GPTQ on NVFP4", "the levels that it multiplies"),
    Branch("Text like yours is at hand", "GPTQ in 4 bits", "GPTQ 4", "half the KL of rounding to nearest"),
    Branch("No text, or no time", "NVFP4, else RTN in 4 bits", "NVFP4", "least KL of these without text"),
)


def bits_of(candidate: Candidate) -> float:
    """The bits of a code of ``candidate``; for one of llama.cpp's mixes, the bits in its name."""
    if candidate.file is not None:
        return float(candidate.file[1])
    return float(candidate.recipe.bits)


def taken(target: str, candidate: Candidate, shapes: Mapping[str, Shape]) -> str | None:
    """The format in which ``target`` accepts ``candidate``, or ``None``. "*": known from its source, not run here."""
    if (candidate.file is not None) != (target == "llama.cpp"):
        return None  # llama.cpp rounds anew for every recipe, and no other engine has its types
    if candidate.file is not None:
        return f"gguf, {candidate.file}"
    try:
        choice = pick(target, shapes, candidate.recipe)
    except QtutorError:
        return None
    return choice.format + ("" if choice.known == RAN else "*")


def best_of_engine(of: Stored, shapes: Mapping[str, Shape]) -> dict[str, dict[str, tuple[Model, str] | None]]:
    """Engine -> size -> the measured model of least KL that it accepts, and the format; ``None`` if there is none."""
    found: dict = {}
    for target in TARGETS:
        taking = {name: taken(target, CANDIDATES[name], shapes) for name in of.models if name in CANDIDATES}
        found[target] = {}
        for size, (low, high) in SIZES.items():
            fit = [n for n, form in taking.items() if form and low < bits_of(CANDIDATES[n]) <= high]
            best = min(fit, key=lambda name: of.models[name].kl, default=None)
            found[target][size] = None if best is None else (of.models[best], taking[best])
    return found
