"""The widget of the roofline: a frame for every rung and batch, with a description and its numbers."""

import json
import re

import pytest

from qtutor.course.ladder.roofline import Dot, Machine
from qtutor.course.ladder.rungs import FLOAT, LANES, Ladder
from qtutor.course.widgets.kernels import described, numbers, roofline_ladder
from qtutor.errors import QtutorError

MACHINE = Machine(1e10, 8e10)
DOTS = {
    (FLOAT, 1): Dot(FLOAT, 1e9, 2e9, 0.4),
    (LANES, 1): Dot(LANES, 1e9, 2.5e8, 0.1),
    (FLOAT, 4): Dot(FLOAT, 4e9, 2e9, 0.4),
    (LANES, 4): Dot(LANES, 4e9, 2.5e8, 0.4),
}
LADDER = Ladder((FLOAT, LANES), (1, 4), DOTS)


def test_a_frame_for_every_rung_and_batch():
    widget = roofline_ladder(LADDER, [MACHINE])
    rung, batch, shown = widget.children
    assert (rung.options, batch.options) == ((FLOAT, LANES), (1, 4))
    frames = json.loads(re.search(r"<script type=\"application/json\">(.*?)</script>", widget.still, re.DOTALL)[1])
    assert len(frames) == 4 and len(set(frames)) == 4
    rung.value = LANES
    assert "about 4.0 times as fast" in shown.value and "The filled dot is rows as lanes" in shown.value
    batch.value = 4
    assert "about as fast" in shown.value


def test_the_numbers_below_the_picture():
    header, row = numbers(LADDER, LANES, 1)
    assert dict(zip(header, row)) == {
        "rung": LANES, "ms": "100.00", "MB moved": "250", "operations a byte": "4", "billion operations/s": "10",
        "beside float32": "about 4.0 times as fast",
    }  # fmt: skip
    assert numbers(LADDER, FLOAT, 1)[1][-1] == ""


def test_the_picture_in_words():
    said = described(LADDER, [MACHINE], LANES, 4)
    assert "2 dots, 4 tokens at once" in said
    assert "16 operations a byte, 10 billion operations a second, 12% of the limit" in said
    assert "1 token at once" in described(LADDER, [MACHINE], LANES, 1)


def test_a_ladder_without_rungs_is_refused():
    with pytest.raises(QtutorError, match="no rung"):
        roofline_ladder(Ladder((), (1,), {}), [MACHINE])
