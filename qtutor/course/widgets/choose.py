"""The widget of chapter 12: a budget of bytes, and the best model that fits."""

from collections.abc import Mapping, Sequence

import ipywidgets

from qtutor.course.widgets.explorer import Explorer, explore, html_table
from qtutor.errors import QtutorError
from qtutor.plots.choose import all_models
from qtutor.plots.comparison import Point

BEST = 3  # models that the table below the picture names


def budget(families: Mapping[str, Sequence[Point]], *, steps: int = 10) -> Explorer:
    """A slider over megabytes, above the picture of all models; the model of least KL that fits has a ring.

    families: the name of a kind in pictures -> its models. steps: positions of the slider. Raises :class:`QtutorError`
    if there is no model.
    """
    points = [point for of in families.values() for point in of]
    if not points:
        raise QtutorError("there is no model to show: give the models of course.choose.results, by family.")
    low, high = (end(point.nbytes for point in points) / 1e6 for end in (min, max))
    sizes = [round(low + (high - low) * step / (steps - 1) + 0.005, 2) for step in range(steps)]

    def fitting(megabytes: float) -> list[Point]:
        return sorted((p for p in points if p.nbytes <= megabytes * 1e6), key=lambda p: (p.kl, p.nbytes))

    def draw(megabytes: float):
        found = fitting(megabytes)
        rows = [[p.name, f"{p.nbytes / 1e6:.2f}", f"{p.kl:.4f}"] for p in found[:BEST]]
        table = html_table(["best that fit", "MB", "KL"], *rows)
        return all_models(families, megabytes * 1e6, found[0]), table

    def alt(megabytes: float) -> str:
        found = fitting(megabytes)
        return (
            f"Megabytes against KL divergence of {len(points)} models, with a dashed line at {megabytes} MB. "
            f"{len(found)} fit. The best of them, with a ring, is {found[0].name}: {found[0].nbytes / 1e6:.2f} MB, KL "
            f"{found[0].kl:.4f}."
        )

    slider = ipywidgets.SelectionSlider(options=sizes, value=sizes[len(sizes) // 2], description="MB")
    return explore(draw, frames={"megabytes": sizes}, alt=alt, megabytes=slider)
