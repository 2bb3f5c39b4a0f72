"""What an exercise is: data that the module of its topic holds, and that :func:`qtutor.course.check` uses."""

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
TURN = "your turn"  # what a stub raises NotImplementedError with


@dataclass(frozen=True)
class Exercise:
    """One exercise of one chapter. The solution is not here: it is in the chapter, and is checked like a learner's.

    name: topic and function, ``"rtn.encode"``. The topic says which chapter it belongs to.
    difficulty: 1 to 3; 4 is optional, and comes without hints. minutes: the time that a learner needs.
    reference: an independent version, slow and obvious (plain loops, float64). With one output it returns the value;
    with several ``outputs``, a tuple of them.
    cases: a function that returns a new list of inputs, each as (a description of the input, the positional arguments).
    outputs: the names of the returned values in messages, ``("scale", "zero")``.
    mistakes: diagnosis -> a function that makes exactly this mistake. The diagnosis is printed if the learner's results
    equal those of the mistake on every case on which the mistake differs from the reference.
    properties: (diagnosis, ``predicate(arguments, results)``) that must hold, too. ``results`` is a tuple of numpy
    arrays (int64 or float64), one for each of ``outputs``.
    follows: outputs that follow from the others, as the place of the smallest error follows from the errors. Where two
    errors are nearly equal their last bits decide it, so the other outputs say which mistake a result shows.
    tolerance: relative to the expected number, or to a thousandth of the largest number in the result if that is more
    (for sums that nearly cancel). If it is not 0, the exercise says why.
    form: a function that says what is wrong with the kind of a returned value, or ``""``; ``None`` if numbers may come
    in any form, as lists, arrays or tensors.
    seen: ``seen(returned, arguments)`` makes of what a function returned what is compared, such as what a reader says
    of the folder that it wrote; ``None`` compares what was returned.
    replaces: the function of the package that :func:`qtutor.course.mine` replaces by the learner's, or ``None``.
    speed: ``speed(function)`` says of a function that is right on all inputs whether it is fast enough, and what a
    learner is told of its speed; ``None`` if speed does not count. The reference, slow on purpose, is not asked.
    adapt: the learner's function -> a function with the arguments and results of the replaced one; ``None`` if they
    agree already.
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
        """The chapter of its topic, ``"02_round_to_nearest"``."""
        return CHAPTERS[self.name.partition(".")[0]]

    @property
    def dots(self) -> str:
        """The difficulty as dots: ``●●○``, and for 4 one more than there are: ``●●●●``."""
        return "●" * self.difficulty + "○" * (3 - self.difficulty)
