"""A mistake as an edit of the right solution: what a learner may get wrong, one line each.

A module of an exercise writes the right solution once, and each mistake as a change of its text::

    @solution
    def right(weight, bits):
        return (weight.amax(1) - weight.amin(1)) / (2**bits - 1)

    MISTAKES = {
        "you divided the range by 2**bits.": right.edit("2**bits - 1", "2**bits"),
        "the range is upside down.": right.edit(("amax", "amin"), ("amin(1))", "amax(1))")),
    }

The line says what is wrong and nothing else. An edit fails at import where its text does not stand in the solution
exactly once, so a solution that is rewritten cannot silently turn a mistake into something else.
"""

import functools
import inspect
import linecache
import textwrap
from collections.abc import Callable


class Solution:
    """The right solution of an exercise: called like the function it is made of, and the origin of its edits.

    source: the function's text, from ``def`` on, not indented.
    """

    def __init__(self, function: Callable):
        functools.update_wrapper(self, function)  # inspect.signature then finds the function's own arguments
        text = textwrap.dedent(inspect.getsource(function))
        self.source = text[text.index("def ") :]  # without the decorator, which would make a Solution of the mistake

    def __call__(self, *arguments):
        return self.__wrapped__(*arguments)

    def edit(self, *pairs) -> Callable:
        """The solution with a mistake: ``edit("old", "new")``, or several edits ``edit(("old", "new"), ...)`` in turn.

        The function has the globals of the solution's module, and the solution itself as its attribute ``solution``.
        Raises :class:`ValueError` where an old text does not occur exactly once, or the source stays what it was.
        """
        pairs = [pairs] if isinstance(pairs[0], str) else pairs
        source = self.source
        for old, new in pairs:
            if source.count(old) != 1 or old == new:
                found = f"is found {source.count(old)} times, not once" if old != new else "is replaced by itself"
                raise ValueError(f"edit of {self._where()}: {old!r} {found}, in:\n{source}")
            source = source.replace(old, new)
        if source == self.source:
            raise ValueError(f"edit of {self._where()}: {pairs!r} leave the source as it was:\n{source}")
        return self._compiled(source, ", ".join(f"{new!r} for {old!r}" for old, new in pairs))

    def _where(self) -> str:
        return f"{self.__module__.removeprefix('qtutor.course.exercises.')}, {self.__name__}"

    def _compiled(self, source: str, what: str) -> Callable:
        filename = f"<{self._where()} with {what}>"
        made = {}
        exec(compile(source, filename, "exec"), self.__wrapped__.__globals__, made)
        # Tracebacks look here for the lines of a file that does not exist.
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
        function = made[self.__name__]
        function.__doc__ = f"The right solution with {what}."
        function.solution = self
        return function


def solution(function: Callable) -> Solution:
    """Decorator of a plain function of a module: what its mistakes are edits of."""
    return Solution(function)
