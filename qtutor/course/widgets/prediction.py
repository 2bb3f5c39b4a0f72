"""A field for the learner's prediction, and the line that shows it beside the measured number.

    predict("05-loud-channel", "Which factor s gives the smallest sum of errors?")   # before the experiment
    revealed("05-loud-channel", best)                                               # under its result

Where no kernel runs (the book), the question is shown with a folded text under it, and without a field.
"""

from html import escape

import ipywidgets

from qtutor.course.tables import say
from qtutor.course.widgets.explorer import Explorer
from qtutor.course.workspace import predictions
from qtutor.errors import QtutorError

PLAIN = "(a field for your prediction: run this cell to type into it)"
NEAR = 0.1  # a prediction that is off by less than this share is close


def predict(name: str, question: str, unit: str = "") -> "Prediction":
    """A field under ``question`` for a number, which is kept under ``name``: chapter and topic, as "05-loud-channel".

    unit: the unit of the number, shown after the field. Raises :class:`QtutorError` for a name with other characters
    than small letters, digits and single dashes.
    """
    _check(name)
    return Prediction(name, question, unit)


def revealed(name: str, measured: float, unit: str = "") -> None:
    """Show the measured number beside the prediction ``name``, on the page, as one line."""
    _check(name)
    try:
        predicted = predictions.load(name)
    except QtutorError as error:
        say(f"**Measured: {_written(measured, unit)}.** Your prediction cannot be shown: {error}")
        return
    if predicted is None:
        say(f"**Measured: {_written(measured, unit)}.** There is no prediction of yours to compare it with.")
        return
    say(
        f"**You predicted {_written(predicted, unit)}. Measured: {_written(measured, unit)}.** "
        f"{_compared(predicted, measured)}"
    )


class Prediction(Explorer):
    """What :func:`predict` returns: the question, a field, and a line that says what is kept."""

    def __init__(self, name: str, question: str, unit: str):
        self.name, self.unit = name, unit
        self.field = ipywidgets.Text(
            description="prediction", placeholder="a number, then Enter", continuous_update=False
        )
        self.said = ipywidgets.HTML()
        self._show_what_is_kept()
        self.field.observe(self._typed, names="value")
        beside = [self.field, ipywidgets.HTML(escape(unit))] if unit else [self.field]
        asked = ipywidgets.HTML(f"<b>{escape(question)}</b>")
        super().__init__([asked, ipywidgets.HBox(beside), self.said], _still(question, unit))

    def _show_what_is_kept(self) -> None:
        """At the start, show the number that was kept before, perhaps by another kernel."""
        try:
            number = predictions.load(self.name)
        except QtutorError as error:
            self._say(str(error))
            return
        if number is None:
            self._say("Nothing is kept yet.")
        else:
            self.field.value = f"{number:.10g}"
            self._say(f"Your prediction: {_written(number, self.unit)}. You can change it.")

    def _typed(self, change) -> None:
        try:
            if not change["new"].strip():
                predictions.keep(self.name, None)
                self._say("Your prediction is deleted.")
                return
            number = predictions.number_in(change["new"], self.unit)
            where = predictions.keep(self.name, number)
        except QtutorError as error:
            self._say(f"Not kept: {error}")
            return
        self._say(f"Your prediction: {_written(number, self.unit)}. {where}")

    def _say(self, sentence: str) -> None:
        self.said.value = f"<span role='status'>{escape(sentence)}</span>"

    def _repr_mimebundle_(self, **kwargs) -> dict:
        return super()._repr_mimebundle_(**kwargs) | {"text/plain": PLAIN}


def _still(question: str, unit: str) -> str:
    """The question for pages without a kernel. It contains nothing from the learner, so it is the same in every run."""
    asked = f"{escape(question)}{f' (in {escape(unit)})' if unit else ''}"
    return (
        f"<details class='qtutor-prediction'><summary>Your prediction: {asked}</summary>"
        "<p>Write a number down. The line <b>Measured</b> under the next results has the answer. In a notebook there "
        "is a field here: it keeps your number, and the answer is shown beside it.</p></details>"
    )


def _written(number: float, unit: str) -> str:
    """A number with three digits and its unit; whole numbers up to a million keep all their digits."""
    whole = float(number).is_integer() and abs(number) < 1e6
    return f"{number:,.0f} {unit}".strip() if whole else f"{number:.3g} {unit}".strip()


def _compared(predicted: float, measured: float) -> str:
    if predicted == measured:
        return "Exactly."
    if abs(predicted - measured) <= NEAR * abs(measured):
        return "That is close."
    return f"Your number is too {'high' if predicted > measured else 'low'}."


def _check(name: str) -> None:
    if not predictions.NAME.fullmatch(name):
        raise QtutorError(
            f"the name of a prediction has small letters, digits and dashes, such as 05-loud-channel, not {name!r}."
        )
