"""The widgets of chapter 10: a page table to step through, and the users that fit into a memory."""

from collections.abc import Mapping, Sequence
from html import escape

import ipywidgets

from qtutor.course.serving.history import Block, Moment
from qtutor.course.serving.sizes import Shape
from qtutor.course.serving.sizes import users as fitting
from qtutor.course.widgets.explorer import Explorer, explore, html_table
from qtutor.errors import QtutorError
from qtutor.plots.serving import LETTERS
from qtutor.plots.serving import users as picture

KINDS = tuple((weights, cache) for weights in (16, 4) for cache in (16, 8, 4))
TOKENS = tuple(2**i for i in range(8, 18))
STYLE = """
.qtutor-pages .blocks {display: flex; flex-wrap: wrap; gap: 6px; margin: 0.5em 0}
.qtutor-pages .block {width: 8.4em; border: 2px solid currentColor; border-radius: 4px; padding: 1px 4px;
  font: 12px/1.4 monospace}
.qtutor-pages .free {border-style: dotted}
.qtutor-pages .owned {color: black; border-color: black}
.qtutor-pages .shared {border-width: 4px; padding: 0 2px}
.qtutor-pages li {min-height: 1.3em}
"""


def page_table(moments: Sequence[Moment], *, size: int, frames: dict[str, list] | None = None) -> Explorer:
    """A slider over the steps of :func:`.history.continuous`: the events, the owners of the blocks, who waits.

    size: tokens of a block. frames: by default every step. Raises :class:`QtutorError` if there is no step.
    """
    if not moments:
        raise QtutorError("there is no step to show: give what history.continuous returns for one request or more.")
    names = sorted({text.name for moment in moments for text in moment.texts})
    colours = {name: LETTERS[i % len(LETTERS)] for i, name in enumerate(names)}

    def draw(step: int) -> str:
        return moment_html(moments[step], step, size, colours)

    steps = {"step": list(range(len(moments)))}
    slider = ipywidgets.IntSlider(value=0, min=0, max=len(moments) - 1, description="step")
    return explore(draw, frames=steps if frames is None else frames, step=slider)


def moment_html(moment: Moment, step: int, size: int, colours: Mapping[str, str]) -> str:
    """One step as HTML: its events, the blocks, and the tables of the texts. Letters say the same as colours."""
    events = (
        "".join(f"<li>{escape(event)}</li>" for event in moment.events)
        or "<li>texts grow, or more of them is read</li>"
    )
    blocks = "".join(_block_html(number, block, size, colours) for number, block in enumerate(moment.blocks))
    rows = [
        [text.name, _doing(text), ", ".join(map(str, text.table)), f"{text.end} of {len(text.table) * size}"]
        for text in moment.texts
    ]
    waiting = f"Waiting: {escape(', '.join(moment.waiting))}." if moment.waiting else "Nobody waits."
    tables = html_table(["text", "in this step", "its table of blocks", "places in use"], *rows) if rows else ""
    return (
        f"<div class='qtutor-pages'><style>{STYLE}</style><p><b>Step {step}.</b> {waiting}</p><ul>{events}</ul>"
        f"<div class='blocks' role='list' aria-label='the blocks of the cache'>{blocks}</div>{tables}</div>"
    )


def _doing(text) -> str:
    if text.start == text.end:
        return "waits for its turn"
    if text.end - text.start == 1:
        return f"reads token {text.start}" + (", writes one" if text.writes else "")
    return f"reads tokens {text.start} to {text.end - 1}" + (", writes one" if text.writes else "")


def _block_html(number: int, block: Block, size: int, colours: Mapping[str, str]) -> str:
    filled = "■" * block.filled + "□" * (size - block.filled)
    if not block.owners:
        state = "free, known" if block.known else "free"
        inside = filled if block.known else "□" * size
        return f"<div class='block free' role='listitem'>{number}: {state}<br>{inside}</div>"
    shared = len(block.owners) > 1
    kind = "block owned shared" if shared else "block owned"
    told = f"{'+'.join(block.owners)}{' share' if shared else ''}"
    style = f"background:{colours[block.owners[0]]}"
    return f"<div class='{kind}' role='listitem' style='{style}'>{number}: {escape(told)}<br>{filled}</div>"


def users_that_fit(shapes: Mapping[str, Shape], *, frames: dict[str, list] | None = None) -> Explorer:
    """The users that fit against the tokens of each, for several bits of weights and caches, by model and memory.

    shapes: models by name. frames: by default three memories for each model. Raises :class:`QtutorError` if there are
    none.
    """
    if not shapes:
        raise QtutorError("there is no model to show: give a dict from names to shapes, such as sizes.PUBLISHED.")

    def counts(model: str, memory: int) -> dict[tuple[int, int], list[int]]:
        return {kind: [fitting(shapes[model], memory * 1e9, n, *kind) for n in TOKENS] for kind in KINDS}

    def draw(model: str, memory: int):
        found = counts(model, memory)
        rows = [[f"{weights} / {cache}", *found[weights, cache][4::2]] for weights, cache in KINDS]
        header = ["bits of weights / cache", *(f"{n:,} tokens" for n in TOKENS[4::2])]
        return picture(TOKENS, found, f"{model} in {memory} GB"), html_table(header, *rows)

    def alt(model: str, memory: int) -> str:
        at = TOKENS.index(4096)
        numbers = ", ".join(f"{of[at]} with {w} and {c}" for (w, c), of in counts(model, memory).items())
        return (
            f"Falling curves on logarithmic axes: the users of {model} that fit into {memory} GB, against the tokens "
            f"of each user. At 4,096 tokens, by the bits of weights and cache: {numbers}."
        )

    first = next(iter(shapes))
    controls = {
        "model": ipywidgets.Dropdown(options=list(shapes), value=first, description="model"),
        "memory": ipywidgets.SelectionSlider(options=[8, 16, 24, 48, 80, 141], value=24, description="GB"),
    }
    chosen = {"model": list(shapes), "memory": [16, 24, 80]}
    return explore(draw, frames=chosen if frames is None else frames, alt=alt, **controls)
