"""The table of engines is computed from the rules, and says for each format how this is known."""

import qtutor
from qtutor.course import engines
from qtutor.formats import targets, ways

SHAPES = {f"model.layers.0.{name}": (4096, 4096) for name in ("self_attn.q_proj", "mlp.down_proj")}
FOUR = qtutor.Recipe(bits=4, symmetric=True, group_size=128)


def test_a_row_is_what_pick_says_of_each_engine():
    row = engines.takers({"four": FOUR}, SHAPES)["four"]
    assert list(row) == list(ways.TARGETS)
    for target, found in row.items():
        choice = targets.pick(target, SHAPES, FOUR)
        assert found.split("*")[0].split(",")[0] == choice.format
        assert ("*" in found) == (choice.known == ways.READ)
        assert ("rounds anew" in found) == (not choice.recipe)


def test_an_engine_that_does_not_take_a_recipe_says_why():
    nf4 = qtutor.Recipe("nf4")
    row = engines.takers({"nf4": nf4}, SHAPES)["nf4"]
    assert row["vllm"] == engines.NOBODY and row["transformers"] == "bitsandbytes"
    assert "its levels are nf4" in engines.why_not("vllm", nf4, SHAPES)
    assert engines.why_not("vllm", FOUR, SHAPES) == ""


def test_the_table_has_a_row_for_each_recipe(monkeypatch):
    shown = []
    monkeypatch.setattr(engines, "table", lambda header, *rows: shown.append((header, rows)))
    engines.takers_table({"four": FOUR, "nf4": qtutor.Recipe("nf4")}, SHAPES)
    ((header, rows),) = shown
    assert header == ["recipe", *ways.TARGETS]
    assert [row[0] for row in rows] == ["four", "nf4"] and all(len(row) == len(header) for row in rows)


def test_without_the_package_our_own_reader_loads_and_is_named(tmp_path, monkeypatch):
    model, _ = qtutor.load_decoder()
    qtutor.quantize(model, qtutor.Recipe(bits=4, symmetric=True, group_size=32), progress=False)
    folder = qtutor.export(model, tmp_path / "out", format="compressed-tensors")
    assert engines.settings_of(folder)["quant_method"] == "compressed-tensors"
    monkeypatch.setattr(engines, "has_engine", lambda: False)
    name, loaded = engines.loaded_by_an_engine(folder)
    assert name.startswith("qtutor's reader") and loaded.model.layers[0].mlp.up_proj.grid.bits == 4
    monkeypatch.setattr(engines, "has_engine", lambda: True)
    monkeypatch.setattr(engines, "as_transformers_loads", lambda where: f"theirs of {where.name}")
    assert engines.loaded_by_an_engine(folder) == ("transformers with compressed-tensors", "theirs of out")


def test_a_changed_rule_changes_the_table(monkeypatch):
    before = engines.takers({"four": FOUR}, SHAPES)["four"]["vllm"]
    others = {"vllm": tuple(way for way in ways.WAYS["vllm"] if way.format != "compressed-tensors")}
    monkeypatch.setattr(targets, "WAYS", ways.WAYS | others)
    assert before.startswith("compressed-tensors")
    assert engines.takers({"four": FOUR}, SHAPES)["four"]["vllm"].startswith("gptq")
