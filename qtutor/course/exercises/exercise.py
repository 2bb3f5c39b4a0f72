"""What an exercise is: data that is defined in the module of its topic and used by :func:`qtutor.course.check`."""

from collections.abc import Callable
from dataclasses import dataclass, field

from qtutor.errors import QtutorError

# The topics and their chapters, in the order of the course.
CHAPTERS = {
    "start": "00_start_here",
    "numbers": "01_numbers",
    "rtn": "02_round_to_nearest",
    "distributions": "03_distributions",
    "bnb": "04_nf4_and_int8",
    "awq": "05_awq",
    "gptq": "06_gptq",
    "gguf": "07_gguf",
    "checkpoints": "08_checkpoints",
    "kernels": "09_quantized_decoder",
    "serving": "10_serving",
    "choose": "12_choose",
}
TURN = "your turn"  # the message of the NotImplementedError that a stub raises


@dataclass(frozen=True)
class Exercise:
    """One exercise of one chapter. Its solution is not here but in the chapter, and is checked like a learner's answer.

    name: topic and function, ``"rtn.encode"``. The topic determines the chapter.
    difficulty: 1 to 3; an exercise of difficulty 4 is optional and has no hints. minutes: the time a learner needs.
    reference: an independent version, slow and obvious (plain loops, float64). It returns the value if there is one
    output, and a tuple if there are several ``outputs``.
    cases: a function that returns a new list of inputs, each as (a description of the input, the positional arguments).
    outputs: the names of the returned values in messages, ``("scale", "zero")``.
    mistakes: diagnosis -> a function that makes exactly this mistake. The diagnosis is printed if the learner's results
    equal the results of the mistake on every case in which the mistake differs from the reference.
    properties: pairs (diagnosis, ``predicate(arguments, results)``); every predicate must hold, too. ``results`` is a
    tuple of numpy arrays (int64 or float64), one for each of ``outputs``.
    follows: outputs that follow from other outputs, as the index of the smallest error follows from the errors. If two
    errors are nearly equal, their last bits decide the index, so a mistake is identified by the other outputs.
    tolerance: relative to the expected number, or to a thousandth of the largest number in the result if that is more
    (for sums that nearly cancel). If the tolerance is not 0, the exercise says why.
    form: a function that says what is wrong with the type of a returned value, or ``""``; ``None`` if numbers may be
    returned in any form: lists, arrays or tensors.
    seen: ``seen(returned, arguments)`` turns the returned value into the value that is compared, such as a reader's
    answer about the folder that the function wrote; with ``None``, the returned value itself is compared.
    replaces: the package's function that :func:`qtutor.course.mine` replaces by the learner's, or ``None``.
    speed: ``speed(function)`` is called with a function that is right on all inputs. It returns whether the function is
    fast enough, and a text for the learner about its speed; ``None`` if speed does not count. The speed of the
    reference is not checked, because the reference is slow on purpose.
    adapt: the learner's function -> a function with the arguments and results of the replaced one; ``None`` if both
    already have the same.
    """

    name: str
    title: str
    difficulty: int
    minutes: int
    reference: Callable
    cases: Callable[[], list[tuple[str, tuple]]]
    outputs: tuple[str, ...]
    mistakes: dict[str, Callable] = field(default_factory=dict)
    properties: tuple[tuple[str, Callable], ...] = ()
    follows: tuple[str, ...] = ()
    tolerance: float = 0.0
    form: Callable[[object], str] | None = None
    seen: Callable[[object, tuple], object] | None = None
    speed: Callable[[Callable], tuple[bool, str]] | None = None
    replaces: str | None = None
    adapt: Callable[[Callable], Callable] | None = None

    def __post_init__(self):
        if self.difficulty not in (1, 2, 3, 4) or self.name.count(".") != 1 or not self.outputs:
            raise QtutorError(
                f"exercise {self.name!r}: a name has the form topic.function, difficulty is 1 to 4 (found "
                f"{self.difficulty!r}), and outputs names each returned value (found {self.outputs!r})."
            )

    @property
    def chapter(self) -> str:
        """The chapter of the exercise's topic, ``"02_round_to_nearest"``."""
        return CHAPTERS[self.name.partition(".")[0]]

    @property
    def dots(self) -> str:
        """The difficulty as three dots, ``●●○``; difficulty 4 has four dots: ``●●●●``."""
        return "●" * self.difficulty + "○" * (3 - self.difficulty)
