"""The capstone measures a model by itself. If a learner passes anything else, it kindly explains the mistake."""

import copy
import math

import pytest
import torch

import qtutor
from qtutor.course.your_model import attempts, capstone
from qtutor.families import linear_layers
from qtutor.measure.texts import text_of
from qtutor.runtime.linear import QuantWeight
from tests.course.your_model.conftest import ALL, quantized
from tests.families import small as families


def test_the_size_is_the_same_number_of_bits_a_weight_for_every_model(loaded):
    assert capstone.limit_of(capstone.WEIGHTS) == 80_000_000
    own = capstone.limit_of(qtutor.evaluate.model_weights(loaded[0]))
    assert own == 80_000_000 * 1_443_072 // 134_515_008 and 4.7 < 8 * own / 1_443_072 < 4.8


def test_bytes_and_kl_are_measured_against_a_float_model_that_is_loaded_anew(small, loaded):
    model, tokenizer = loaded
    verdict = capstone.examine(small, "embedded", "three bits")
    text = text_of(tokenizer, window=capstone.WINDOW, tokens=capstone.TOKENS).token_ids
    right = qtutor.evaluate.compare(small, model, text, capstone.WINDOW)
    found = verdict.attempt
    assert (found.model, found.note, found.nbytes) == ("embedded", "three bits", qtutor.evaluate.model_bytes(small))
    assert found.kl == pytest.approx(right.kl, rel=1e-6) and found.flips == pytest.approx(right.flips)
    assert f"{found.nbytes:,} bytes of 858,237 (83.4%), KL {found.kl:.4f}" in verdict.text
    assert "same weights" not in verdict.text


def test_a_model_that_is_the_learners_own_float_one_changed_in_place_is_measured_all_the_same(loaded):
    model = copy.deepcopy(loaded[0])  # what the learner holds as "the float model"
    qtutor.quantize(model, qtutor.Recipe("rtn", 3, **ALL), progress=False)
    first = capstone.examine(model, "embedded").attempt
    assert first.kl > 0.1
    name, layer = next((name, m) for name, m in model.named_modules() if isinstance(m, QuantWeight))
    layer.scales.mul_(1.5)  # the same object again, with different scales
    again = capstone.examine(model, "embedded").attempt
    assert again.kl > first.kl and first.nbytes == again.nbytes, name


def test_folders_and_files_are_attempts_too(small, loaded, tmp_path):
    folder = qtutor.export(small, tmp_path / "folder", tokenizer=loaded[1])
    file = qtutor.export(loaded[0], tmp_path / "a.gguf", format="gguf", type="Q4_0", pure=True, tokenizer=loaded[1])
    in_memory, of_folder, of_file = (capstone.examine(what, "embedded").attempt for what in (small, folder, str(file)))
    assert of_folder.nbytes == in_memory.nbytes and of_folder.kl == pytest.approx(in_memory.kl)
    infos = qtutor.gguf.read(file).tensors.values()
    assert of_file.nbytes == sum(info.nbytes for info in infos) <= 858_237 and of_file.kl < in_memory.kl


def test_what_is_no_model_is_refused_with_the_likely_mistake(loaded, small):
    model, tokenizer = loaded
    recipe = qtutor.Recipe("rtn", 3)
    report = qtutor.quantize(copy.deepcopy(model), recipe, progress=False)
    for thing, said in {
        "None": (None, "not a model but None. Does your function end without a return?"),
        "report": (report, "not a model but a Report. qtutor.quantize changes the model in place"),
        "recipe": (recipe, "not a model but a Recipe. A recipe is only a plan"),
        "pair": ((small, tokenizer), "not a model but a tuple. qtutor.load returns model and tokenizer"),
        "function": (lambda: small, "not a model but a function. That is a function: call it"),
        "class": (torch.nn.Linear, "not a model but a type. That is a class"),
        "tensors": (small.state_dict(), "not a model but an OrderedDict. A dict of tensors is not a model"),
        "number": (0.1, "not a model but a float. Give the quantized model"),
        "another module": (torch.nn.Linear(2, 2), "Not measured: "),
        "no path": ("nothing.gguf", "Not measured: nothing.gguf"),
        "no folder": ("out/of/nowhere", "Not measured: "),
        "the float model by name": ("embedded", "embedded is the float model itself"),
    }.values():
        verdict = capstone.examine(thing, "embedded")
        assert verdict.attempt is None and verdict.text.startswith("Not measured: ") and said in verdict.text


def test_the_float_model_and_float_weights_that_were_rounded_are_no_packed_model(loaded):
    verdict = capstone.examine(loaded[0], "embedded")
    assert verdict.attempt is None and "none of its layers is packed" in verdict.text and "5,772,288" in verdict.text
    rounded = copy.deepcopy(loaded[0])
    for layer in linear_layers(rounded).values():
        layer.weight.data = (layer.weight.data * 8).round() / 8
    assert "none of its layers is packed" in capstone.examine(rounded, "embedded").text


def test_too_large_says_by_how_much_and_where_the_bytes_are(loaded):
    verdict = capstone.examine(quantized(loaded[0], qtutor.Recipe("rtn", 2)), "embedded")  # the embedding is float
    assert verdict.attempt is None and "too many: the limit is 858,237" in verdict.text
    assert "The largest matrix in float is model.embed_tokens, with " in verdict.text
    verdict = capstone.examine(quantized(loaded[0], qtutor.Recipe("rtn", 4, **ALL)), "embedded")
    assert verdict.attempt is None and "it needs 923,648 bytes, 65,411 too many" in verdict.text
    assert "All of its matrices are packed, so use fewer bits" in verdict.text


def test_a_float_file_is_too_large(loaded, tmp_path):
    file = qtutor.export(loaded[0], tmp_path / "a.gguf", format="gguf", type="Q8_0", tokenizer=loaded[1])
    verdict = capstone.examine(file, "embedded")
    assert verdict.attempt is None and "None of its layers is packed. Choose fewer bits" in verdict.text


def test_exactly_the_limit_is_within_it_and_a_byte_less_is_not(small, monkeypatch):
    nbytes = qtutor.evaluate.model_bytes(small)
    monkeypatch.setattr(capstone, "limit_of", lambda weights: nbytes)
    assert capstone.examine(small, "embedded").attempt.nbytes == nbytes
    monkeypatch.setattr(capstone, "limit_of", lambda weights: nbytes - 1)
    assert "1 too many" in capstone.examine(small, "embedded").text


def test_another_model_is_refused_by_what_differs(loaded):
    model = quantized(families.random("llama"), qtutor.Recipe("rtn", 3, 32))
    verdict = capstone.examine(model, "embedded")
    assert verdict.attempt is None and "this is another model: its " in verdict.text
    pruned = copy.deepcopy(loaded[0])
    del pruned.model.layers[-1]
    pruned.config.num_hidden_layers -= 1
    if getattr(pruned.config, "layer_types", None):
        pruned.config.layer_types = pruned.config.layer_types[:-1]
    verdict = capstone.examine(quantized(pruned, qtutor.Recipe("rtn", 3, **ALL)), "embedded")
    assert "its num_hidden_layers is 1, and the float model's is 2" in verdict.text


def test_numbers_that_are_not_finite_are_refused(small, loaded):
    broken = copy.deepcopy(small)
    broken.model.norm.weight.data[3] = math.nan
    verdict = capstone.examine(broken, "embedded")
    assert verdict.attempt is None and "model.norm.weight" in verdict.text, verdict.text
    broken = copy.deepcopy(small)
    next(m for m in broken.modules() if isinstance(m, QuantWeight)).scales[0, 0] = math.inf
    verdict = capstone.examine(broken, "embedded")
    assert verdict.attempt is None and "Not measured: " in verdict.text and "scales" in verdict.text, verdict.text


def test_predictions_that_are_not_finite_are_refused(small):
    broken = copy.deepcopy(small)
    broken.model.norm.weight.data[:] = 3e38  # finite, but the sums are not
    verdict = capstone.examine(broken, "embedded")
    assert verdict.attempt is None and "its predictions are not" in verdict.text


def test_a_model_of_other_weights_is_measured_and_asked_about(small):
    other = copy.deepcopy(small)
    for module in other.modules():
        if isinstance(module, QuantWeight):
            module.packed.copy_(module.packed.flatten()[torch.randperm(module.packed.numel())].view_as(module.packed))
    verdict = capstone.examine(other, "embedded")
    assert verdict.attempt is not None and verdict.text.endswith("Was it made from the same weights?")


def test_a_float_model_that_cannot_serve_is_named(small, loaded, tmp_path):
    folder = qtutor.export(small, tmp_path / "folder", tokenizer=loaded[1])
    assert "it is quantized already. Name the float model" in capstone.examine(small, folder).text
    assert "cannot be loaded" in capstone.examine(small, tmp_path / "nothing").text


def test_check_prints_keeps_and_shows(small, capsys):
    capstone.check(None, "embedded")
    assert capsys.readouterr().out.startswith("Not measured") and attempts.kept("embedded") == []
    capstone.check(small, "embedded", "three bits")
    out = capsys.readouterr().out
    assert "bytes of 858,237" in out and "Kept" not in out  # outside of a workspace nothing is written
    assert [attempt.note for attempt in attempts.kept("embedded")] == ["three bits"]
    assert attempts.kept("smollm2") == []


def test_show_without_attempts_says_so(capsys):
    capstone.show("embedded")
    assert capsys.readouterr().out == "No attempt yet.\n"
