"""Widgets that need no kernel: a few lines of JavaScript over data that is stored with them.

:func:`live` makes one piece of HTML that needs nothing else: no request, no library, no id (so the same piece may be on
a page twice). It works the same in JupyterLab, in VS Code and in the book. Where scripts do not run (GitHub, a notebook
that is not trusted yet) the reader sees the picture that is stored in it.

The script of a widget is a file beside this one. If the widget adds to the common style (live.css), its own style is a
file here, too. A script only defines functions: first those for arithmetic, which tests call without a browser, and
last ``mount(box, data)``, which builds the widget in ``box``.
"""

import json
from html import escape
from pathlib import Path

from qtutor.errors import QtutorError

FOLDER = Path(__file__).parent
LARGEST = 200_000  # characters in one widget
STILL = "A still picture. To move things, run this cell in a notebook."

MOUNT = """
for (const box of document.querySelectorAll('div.qtutor-live[data-waiting="%s"]')) {
  box.removeAttribute("data-waiting");
  box.querySelector("[data-still]").remove();
  mount(box, JSON.parse(box.querySelector("script[type='application/json']").textContent));
}
"""


class Live:
    """What a widget without a kernel returns: the last line of a cell shows it. plain: text if HTML cannot be shown."""

    def __init__(self, html: str, plain: str = "(a picture to move: it needs a page that runs scripts)"):
        self.html, self.plain = html, plain

    def __repr__(self) -> str:
        return self.plain

    def _repr_mimebundle_(self, **_kwargs) -> dict:
        return {"text/plain": self.plain, "text/html": self.html}


def stored_with(data: dict) -> str:
    """The script element that holds ``data``, anything that JSON can hold, for the script of a widget."""
    # "</" would end the element early, and "<\/" is the same string in JSON.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    return f'<script type="application/json">{text}</script>'


def live(name: str, data: dict, still: str, label: str) -> Live:
    """The widget whose script is ``name``.js, with ``data`` (anything that JSON can hold).

    still: HTML for pages without scripts, a picture with its description. label: a description for people who cannot
    see the widget. Raises :class:`QtutorError` if the HTML is too large to be stored in a notebook.
    """
    html = (
        # suppress-shortcuts: in JupyterLab, a key pressed on a control moves the control, not the selected cell.
        f'<div class="qtutor-live" data-waiting="{name}" data-lm-suppress-shortcuts="true" role="group" '
        f'aria-label="{escape(label)}"><style>{style(name)}</style>'
        f"<div data-still>{still}<p><small>{STILL}</small></p></div>"
        f"{stored_with(data)}"
        f"<script>(() => {{\n{script(name)}{MOUNT % name}}})();</script></div>"
    )
    if len(html) > LARGEST:
        raise QtutorError(
            f"the widget {name} takes {len(html):,} characters, more than the {LARGEST:,} that one may add to a "
            "notebook. Store fewer numbers with it."
        )
    return Live(html)


def style(name: str) -> str:
    """The style of all widgets, with the additions of the widget ``name``."""
    files = [FOLDER / "live.css", FOLDER / f"{name}.css"]
    return "\n".join(file.read_text(encoding="utf-8").rstrip("\n") for file in files if file.exists()) + "\n"


def script(name: str) -> str:
    """The functions of the widget ``name`` and those that all widgets share, as JavaScript."""
    return "\n".join((FOLDER / f"{file}.js").read_text(encoding="utf-8") for file in ("shared", name))
