"""How many of a float model's right answers are left: of sums, compared with perplexity, and by kind of question."""

from dataclasses import dataclass

from qtutor.course.choose import english
from qtutor.course.choose.results import EMBEDDED, SMOLLM2, Model, Stored
from qtutor.course.tables import deviation
from qtutor.decoder import tasks

ASKED = 100  # questions a kind


@dataclass(frozen=True)
class Questions:
    """The kinds of questions that a decoder was asked.

    exact: kinds in which every character of the answer has to be worked out. arithmetic: the exact kinds with sums and
    similar tasks. others: all other kinds. guessable: kinds with two possible answers, so that half of all guesses are
    right.
    """

    exact: tuple[str, ...]
    arithmetic: tuple[str, ...]
    others: tuple[str, ...]
    guessable: tuple[str, ...]


_EXACT = (*tasks.ARITHMETIC, "sorted", "reversed")
QUESTIONS = {
    EMBEDDED: Questions(
        _EXACT, tasks.ARITHMETIC, tuple(kind for kind in tasks.KINDS if kind not in _EXACT), ("compare", "logic")
    ),
    SMOLLM2: Questions(tuple(english.EXACT), english.ARITHMETIC, tuple(english.CHOICES), tuple(english.CHOICES)),
}


def arithmetic_kept(of: Stored, name: str) -> tuple[float, float, float] | None:
    """Share of right arithmetic answers that is left, the share that perplexity suggests, and a chance deviation."""
    asked = _asked(of, name)
    if asked is None:
        return None
    plain, model = asked
    kinds = QUESTIONS[of.source].arithmetic
    kept = sum(model.tasks[k] for k in kinds) / sum(plain.tasks[k] for k in kinds)
    return kept, 1 / (1 + model.rise / 100), deviation(ASKED * len(kinds))


def kinds_kept(of: Stored, name: str) -> dict[str, float] | None:
    """Kind of question -> the share of the float model's right answers that is left; right guesses are subtracted."""
    asked = _asked(of, name)
    if asked is None:
        return None
    plain, model = asked
    kinds = QUESTIONS[of.source]
    chance = {kind: 0.5 if kind in kinds.guessable else 0.0 for kind in (*kinds.exact, *kinds.others)}
    return {k: max(0.0, (model.tasks[k] - c) / (plain.tasks[k] - c)) for k, c in chance.items()}


def exact_and_others(of: Stored, name: str) -> tuple[float, float, float] | None:
    """The means of :func:`kinds_kept` for exact kinds and for the others, and the most that their difference deviates.

    The third number is the sum of both standard deviations. Chance moves each mean by itself, so the standard deviation
    of the difference is smaller.
    """
    kept, kinds = kinds_kept(of, name), QUESTIONS[of.source]
    if kept is None:
        return None
    exact, rest = (sum(kept[k] for k in some) / len(some) for some in (kinds.exact, kinds.others))
    # If right guesses are subtracted, the deviation of a share doubles.
    return exact, rest, deviation(ASKED * len(kinds.exact)) + 2 * deviation(ASKED * len(kinds.others))


def _asked(of: Stored, name: str) -> tuple[Model, Model] | None:
    """The float model and the model ``name``, if both were asked."""
    plain, model = of.models.get("float"), of.models.get(name)
    return None if plain is None or model is None or not plain.tasks or not model.tasks else (plain, model)
