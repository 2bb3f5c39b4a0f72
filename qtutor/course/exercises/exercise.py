"""What an exercise is: data that a chapter's topic module writes down, and :func:`qtutor.course.check` works with."""

from collections.abc import Callable
from dataclasses import dataclass, field

from qtutor.errors import QtutorError

TURN = "your turn"  # what a stub raises NotImplementedError with


@dataclass(frozen=True)
class Exercise:
    """One exercise of one chapter. The solution is not in here: it stands in the chapter, and is checked like yours.

    name: ``"rtn.encode"``, topic and what is built. chapter: ``"02_round_to_nearest"``.
    difficulty: 1 to 3. minutes: what it takes a learner.
    reference: an independent version, slow and obvious (plain loops, float64). With several ``outputs`` it returns a
    tuple of as many; with one, the value itself.
    cases: called for a fresh list of inputs, each as (what kind of input this is, the positional arguments).
    outputs: what each returned value is called in messages, ``("scale", "zero")``.
    mistakes: diagnosis -> a function that makes exactly this mistake. Where a learner's results equal its results on
    every case on which it differs from the reference, the diagnosis is printed.
    properties: (diagnosis, ``predicate(arguments, results)``) that must hold as well. ``results`` is a tuple of numpy
    arrays (int64 or float64), one for each of ``outputs``.
    tolerance: relative to the expected number, or to a thousandth of the largest one beside it where that is more
    (sums that nearly cancel). Where it is not 0, the exercise says why.
    form: what is wrong with the kind of a returned value, in words, or ``""``; ``None`` where numbers may come in any
    form, as lists, arrays or tensors.
    replaces: the package's function that :func:`qtutor.course.mine` puts the learner's in place of, or ``None``.
    adapt: learner's function -> a function that takes and returns what the replaced one does; ``None`` where the two
    agree already.
    """

    name: str
    chapter: str
    title: str
    difficulty: int
    minutes: int
    reference: Callable
    cases: Callable[[], list[tuple[str, tuple]]]
    outputs: tuple[str, ...]
    mistakes: dict[str, Callable] = field(default_factory=dict)
    properties: tuple[tuple[str, Callable], ...] = ()
    tolerance: float = 0.0
    form: Callable[[object], str] | None = None
    replaces: str | None = None
    adapt: Callable[[Callable], Callable] | None = None

    def __post_init__(self):
        if self.difficulty not in (1, 2, 3) or self.name.count(".") != 1 or not self.outputs:
            raise QtutorError(
                f"exercise {self.name!r}: a name has the form topic.function, difficulty is 1, 2 or 3 (found "
                f"{self.difficulty!r}), and outputs names each returned value (found {self.outputs!r})."
            )

    @property
    def dots(self) -> str:
        """The difficulty as it is shown: ``●●○``."""
        return "●" * self.difficulty + "○" * (3 - self.difficulty)
