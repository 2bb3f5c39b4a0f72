"""The budget of chapter 12: the best model that fits, for each place of the slider."""

import json
import re

import pytest

from qtutor.course.widgets import budget
from qtutor.errors import QtutorError
from qtutor.plots.comparison import Point

FAMILIES = {
    "RTN": [Point("RTN 8", 8_000_000, 0.01), Point("RTN 4", 4_000_000, 0.3)],
    "GPTQ": [Point("GPTQ 4", 4_000_000, 0.1)],
}


def test_every_budget_has_a_frame_and_its_best_model():
    widget = budget(FAMILIES, steps=3)
    frames = json.loads(re.search(r"<script type=\"application/json\">(.*?)</script>", widget.still, re.DOTALL)[1])
    assert len(frames) == 3
    slider, shown = widget.children
    assert "The best of them, with a ring, is GPTQ 4: 4.00 MB, KL 0.1000" in frames[0]
    assert "2 fit" in frames[0] and "RTN 8" not in frames[0]
    slider.value = slider.options[-1]
    assert "3 fit" in shown.value and "is RTN 8" in shown.value


def test_nothing_to_show_is_refused():
    with pytest.raises(QtutorError, match="no model"):
        budget({})
