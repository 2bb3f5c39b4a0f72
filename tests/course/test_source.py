"""Source on the page: the core is visible, the rest is folded, and both are the code that the package runs."""

from types import SimpleNamespace

from qtutor.course import source
from qtutor.methods import awq, clip


def test_the_core_stands_in_front_and_the_rest_is_folded(monkeypatch):
    texts = []
    monkeypatch.setattr(source, "display", lambda markdown: texts.append(markdown.data))
    source.show_source([awq.scale_of], [clip.Judge.cost, SimpleNamespace(py_func=awq.nearest)], "the rest")
    (text,) = texts
    core, folded = text.split("<details>")
    assert core.startswith("```python\ndef scale_of(") and core.endswith("```\n\n")
    assert folded.startswith("<summary>the rest</summary>\n\n```python\ndef cost(self")  # no longer indented
    assert "\ndef nearest(" in folded and folded.endswith("```\n\n</details>")


def test_nothing_is_folded_where_there_is_no_rest(monkeypatch):
    texts = []
    monkeypatch.setattr(source, "display", lambda markdown: texts.append(markdown.data))
    source.show_source([awq.nearest, awq.fold])
    assert "details" not in texts[0] and texts[0].count("```") == 2
    assert texts[0].index("def nearest(") < texts[0].index("def fold(")
