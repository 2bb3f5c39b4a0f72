"""Show the source of the package's functions on the page: the core in full, the rest folded."""

import inspect
import textwrap
from collections.abc import Sequence

from IPython.display import Markdown, display


def show_source(core: Sequence, rest: Sequence = (), around: str = "") -> None:
    """Show the source of functions and classes; ``rest`` is folded under a line that says ``around``.

    Functions that numba compiled are shown as they were written.
    """
    text = _code(core)
    if rest:
        text += f"\n\n<details><summary>{around}</summary>\n\n{_code(rest)}\n\n</details>"
    display(Markdown(text))


def _code(parts: Sequence) -> str:
    sources = (textwrap.dedent(inspect.getsource(getattr(part, "py_func", part))).strip() for part in parts)
    return "```python\n" + "\n\n\n".join(sources) + "\n```"
