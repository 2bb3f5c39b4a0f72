"""Write a mistake as an edit of the right solution, so that each mistake takes one line.

The module of an exercise holds the right solution once. Each mistake is a change of the solution's text::

    @solution
    def right(weight, bits):
        return (weight.amax(1) - weight.amin(1)) / (2**bits - 1)

    MISTAKES = {
        "you divided the range by 2**bits.": right.edit("2**bits - 1", "2**bits"),
        "the range is upside down.": right.edit(("amax", "amin"), ("amin(1))", "amax(1))")),
    }

The line of a mistake shows only what is wrong. An edit fails at import unless its old text occurs in the solution
exactly once. So nobody can rewrite a solution and silently turn a mistake into something else.
"""

import functools
import inspect
import linecache
import textwrap
from collections.abc import Callable


class Solution:
    """The right solution of an exercise. It is called like the function that it is made from; mistakes are edits of it.

    source: the text of the function, from ``def`` on, without indentation.
    """

    def __init__(self, function: Callable):
        functools.update_wrapper(self, function)  # so that inspect.signature finds the function's own arguments
        text = textwrap.dedent(inspect.getsource(function))
        self.source = text[text.index("def ") :]  # with the decorator, the mistake would also become a Solution

    def __call__(self, *arguments):
        return self.__wrapped__(*arguments)

    def edit(self, *pairs) -> Callable:
        """The solution with a mistake: ``edit("old", "new")``, or several edits, ``edit(("old", "new"), ...)``.

        The returned function has the globals of the solution's module. Its attribute ``solution`` is this solution.
        Several edits are made one after the other.
        Raises :class:`ValueError` if an old text does not occur exactly once, or if the source does not change.
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
        # The file does not exist, so tracebacks take its lines from this cache.
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
        function = made[self.__name__]
        function.__doc__ = f"The right solution with {what}."
        function.solution = self
        return function


def solution(function: Callable) -> Solution:
    """A decorator that turns a function of a module into a :class:`Solution`; mistakes are edits of the solution."""
    return Solution(function)
