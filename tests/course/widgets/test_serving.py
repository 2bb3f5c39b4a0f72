"""The widgets of chapter 10: every step of a page table, and the number of users for every model and memory."""

import json
import re

import pytest

from qtutor.course.serving.history import Asked, continuous
from qtutor.course.serving.sizes import PUBLISHED
from qtutor.course.widgets import page_table, users_that_fit
from qtutor.errors import QtutorError

ASKED = [Asked("A", 0, (1, 2, 3, 4, 5, 6), 8), Asked("B", 1, (1, 2, 3, 4, 9), 6), Asked("C", 2, (7, 8, 7), 7)]
MOMENTS = continuous(ASKED, 6, 4)


def stored(widget) -> list[str]:
    return json.loads(re.search(r"<script type=\"application/json\">(.*?)</script>", widget.still, re.DOTALL)[1])


def test_every_step_has_a_frame_that_shows_its_blocks():
    widget = page_table(MOMENTS, size=4)
    frames = stored(widget)
    assert len(frames) == len(MOMENTS) == len(set(frames))
    for moment, frame in zip(MOMENTS, frames):
        blocks = re.findall(r"role='listitem'[^>]*>(\d+): ([^<]*)<br>([■□]*)<", frame)
        assert [int(number) for number, *_ in blocks] == list(range(6))
        for block, (_, told, places) in zip(moment.blocks, blocks):
            assert places.count("■") == block.filled and len(places) == 4
            free = "free, known" if block.known else "free"
            assert told == (free if not block.owners else "+".join(block.owners) + " share" * (len(block.owners) > 1))
        assert all(event in frame for event in moment.events)


def test_the_slider_steps():
    slider, shown = page_table(MOMENTS, size=4).children
    assert "Step 0." in shown.value and "A arrives with 6 tokens" in shown.value
    slider.value = slider.max
    assert f"Step {len(MOMENTS) - 1}." in shown.value and "Nobody waits." in shown.value and "<table" not in shown.value


def test_what_a_text_does_is_said_in_words():
    first, second = stored(page_table(MOMENTS, size=4))[:2]
    assert "reads tokens 0 to 5, writes one" in first
    assert "reads token 6, writes one" in second
    chunks = continuous([Asked("A", 0, (1,) * 10, 2)], 4, 4, budget=4)
    assert "reads tokens 0 to 3<" in stored(page_table(chunks, size=4))[0]


def test_users_for_every_model_and_memory():
    shapes = {name: PUBLISHED[name] for name in ("Llama 2 7B", "Llama 3.1 8B")}
    widget = users_that_fit(shapes)
    frames = stored(widget)
    assert len(frames) == 6 == len(set(frames))
    model, memory, shown = widget.children
    memory.value = 80
    assert "Llama 2 7B that fit into 80 GB" in shown.value
    before = shown.value
    model.value = "Llama 3.1 8B"
    assert shown.value != before and "At 4,096 tokens" in shown.value


def test_nothing_to_show_is_refused():
    with pytest.raises(QtutorError, match="no step"):
        page_table([], size=4)
    with pytest.raises(QtutorError, match="no model"):
        users_that_fit({})
