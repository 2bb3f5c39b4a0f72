"""The widget of chapter 09: the rungs of the ladder as a dot that moves under the roof."""

from collections.abc import Sequence

import ipywidgets

from qtutor.course.ladder.roofline import Machine
from qtutor.course.ladder.rungs import FLOAT, Ladder
from qtutor.course.ladder.words import times
from qtutor.course.widgets.explorer import Explorer, explore, html_table
from qtutor.errors import QtutorError
from qtutor.plots.kernels import roofline


def roofline_ladder(ladder: Ladder, machines: Sequence[Machine]) -> Explorer:
    """One dot for every rung, with sliders for the rung and the batch; the chosen rung is filled.

    ladder: what was measured. machines: the limits to draw, at most two. Raises :class:`QtutorError` for a ladder
    without rungs.
    """
    if not ladder.names or not ladder.batches:
        raise QtutorError("there is no rung to show: give the result of ladder.rungs.climbed, with one rung or more.")
    low = min(dot.intensity for dot in ladder.dots.values())
    high = max(dot.intensity for dot in ladder.dots.values())
    span = min(0.02, low / 2), max(200, high * 2)

    def draw(rung, batch):
        dots = [ladder.dots[name, batch] for name in ladder.names]
        return roofline(machines, dots, now=rung, span=span), html_table(*numbers(ladder, rung, batch))

    controls = {
        "rung": ipywidgets.SelectionSlider(options=list(ladder.names), value=ladder.names[0], description="rung"),
        "batch": ipywidgets.SelectionSlider(
            options=list(ladder.batches), value=ladder.batches[0], description="tokens"
        ),
    }
    frames = {"rung": list(ladder.names), "batch": list(ladder.batches)}

    def alt(rung, batch):
        return described(ladder, machines, rung, batch)

    return explore(draw, frames=frames, alt=alt, **controls)


def numbers(ladder: Ladder, rung: str, batch: int) -> list[list[str]]:
    """The header and the row below the picture."""
    dot, start = ladder.dots[rung, batch], ladder.dots.get((FLOAT, batch))
    header = ["rung", "ms", "MB moved", "operations a byte", "billion operations/s", "beside float32"]
    beside = times(start.seconds / dot.seconds) if start and rung != FLOAT else ""
    row = [rung, f"{1e3 * dot.seconds:.2f}", f"{dot.nbytes / 1e6:.0f}", f"{dot.intensity:.2g}"]
    return [header, [*row, f"{dot.speed / 1e9:.3g}", beside]]


def described(ladder: Ladder, machines: Sequence[Machine], rung: str, batch: int) -> str:
    """The picture in words."""
    dot, limit = ladder.dots[rung, batch], machines[0].limit(ladder.dots[rung, batch].intensity)
    return (
        f"A roofline with {len(ladder.names)} dots, {batch} token{'s' if batch > 1 else ''} at once. The filled dot "
        f"is {rung}: {dot.intensity:.2g} operations a byte, {dot.speed / 1e9:.3g} billion operations a second, "
        f"{dot.speed / limit:.0%} of the limit at this place."
    )
