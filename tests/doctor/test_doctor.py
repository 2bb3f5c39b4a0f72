"""A damaged copy for every finding, and healthy folders without findings."""

import json
import warnings
from dataclasses import replace

import pytest
import torch

import qtutor
from qtutor import cli
from qtutor.doctor import examine
from qtutor.doctor.fitting import distance
from qtutor.doctor.patient import opened
from qtutor.formats.ways import TARGETS
from tests.doctor.folders import (
    HEALTHY,
    config,
    damaged,
    each,
    healthy,
    interleaved,
    plainly,
    setting,
    swapped,
    tensors,
)
from tests.formats.foreign_folders import exported
from tests.gguf.small_tokenizers import letters
from tests.models import some_ids, tiny

Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("against", [None, "embedded"])
@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_folders_have_no_findings(name, against):
    found = examine(healthy(name), against)
    assert found.healthy, found.findings
    assert found.run.perplexity < found.run.vocabulary / 2 and found.run.before and found.run.after
    taking = {one.engine for one in found.engines if one.takes}
    assert taking or name == "ours"
    assert "healthy" in str(found).splitlines()


@pytest.mark.parametrize(("form", "recipe"), [("gptq", {}), ("awq", {}), ("compressed-tensors", {"bits": 8})])
@pytest.mark.parametrize("family", ["qwen2", "mistral"])
def test_biases_and_constant_rows_are_no_findings(tmp_path, form, recipe, family):
    """Rows that are constant, all positive or zero, and rows that are shifted by 0.3 standard deviations."""
    model = tiny(family, tied=False)
    with torch.no_grad():
        for name, layer in model.named_modules():
            if name.endswith(("q_proj", "up_proj", "down_proj")):
                layer.weight[0], layer.weight[1], layer.weight[2] = 0.3, layer.weight[1].abs(), 0
                layer.weight[3:20] += 0.3 * layer.weight.std()
    qtutor.quantize(model, qtutor.Recipe(**{"group_size": 32} | recipe), progress=False)
    folder = qtutor.export(model, tmp_path / "out", form, letters())
    config(eos_token_id=letters().eos_token_id)(folder)
    found = examine(folder)
    assert not [one for one in found.findings if one.kind not in ("forward pass", "settings")], found.findings


def test_rows_of_fp8_that_are_nearly_dead_are_no_findings(tmp_path):
    """Their scales are too small for float16, but no engine stores the scales of FP8 in float16."""
    model = tiny(tied=False)
    with torch.no_grad():
        for name, layer in model.named_modules():
            if name.endswith(("q_proj", "down_proj")):
                layer.weight[0] *= 1e-6
    qtutor.quantize(model, qtutor.Recipe("fp8"), progress=False)
    folder = qtutor.export(model, tmp_path / "out", "compressed-tensors", letters())
    config(eos_token_id=letters().eos_token_id)(folder)
    assert model.model.layers[0].self_attn.q_proj.scales.min() < 2.0**-25
    found = examine(folder)
    assert not [one for one in found.findings if one.kind != "forward pass"], found.findings


def test_fp8_codes_and_scales_that_are_no_numbers(tmp_path):
    def change(found):
        found[f"{Q}.weight"].view(torch.uint8)[3, :2] = 0x7F

    parts = [f"{Q}: 2 of 65536 codes are no numbers in fp8 e4m3", "0x7f"]
    check_finds(damaged(tmp_path, "ct fp8", tensors(change)), "unreadable", parts)
    parts = [f"{Q}.weight_scale holds 256 of 256 numbers that are NaN or infinite", "13 more layers"]
    broken = damaged(tmp_path / "scales", "ct fp8", each("weight_scale", lambda scale: scale * float("inf")))
    check_finds(broken, "scales", parts)


def flat(text) -> str:
    return " ".join(str(text).split())


def check_finds(folder, kind: str, parts, against=None):
    """There is one finding of ``kind``, on one line with all ``parts``. All other findings follow from it."""
    found = examine(folder, against)
    ours = [one for one in found.findings if one.kind == kind]
    assert len(ours) == 1 and not found.healthy, found.findings
    text = str(ours[0])
    assert all(part in text for part in parts) and "\n" not in text and len(text) < 700, text
    assert {one.kind for one in found.findings} <= {kind, "forward pass", "settings"}, found.findings
    return found


V1, V2 = (setting(checkpoint_format=version, format=version) for version in ("gptq", "gptq_v2"))


@pytest.mark.parametrize("against", [None, "embedded"])
@pytest.mark.parametrize(
    ("name", "change", "parts"),
    [
        ("gptq", V2, ["one too small", "says that it is 'gptq_v2'", "Set checkpoint_format to 'gptq'"]),
        ("gptq asymmetric", V1, ["one too large", "says that it is 'gptq'", "Set checkpoint_format to 'gptq_v2'"]),
        ("gptq 2", V1, ["one too large"]),
        ("awq", each("qzeros", lambda words: words - 0x11111111), ["one too small", "Convert the original again"]),
    ],
)
def test_zero_points_off_by_one(tmp_path, name, change, parts, against):
    if name == "awq":  # no zero point may be 0, otherwise the subtraction borrows
        model, tokenizer = qtutor.load_decoder()
        qtutor.quantize(model, qtutor.Recipe(symmetric=True), progress=False)
        folder = qtutor.export(model, tmp_path / "damaged", "awq", tokenizer)
        change(folder)
    else:
        folder = damaged(tmp_path, name, change)
    found = check_finds(folder, "zero points", [f"{Q}.qzeros (and in 13 more layers)", *parts], against)
    assert found.run is None or found.run.perplexity > 100


@pytest.mark.parametrize(
    ("bits", "step", "said"), [(4, -0x11111111, "one too small"), (8, 0x01010101, "one too large")]
)
def test_zero_points_of_a_few_layers_that_are_off_by_one(tmp_path, bits, step, said):
    """Only a comparison with FLOAT finds these. Without it, a few layers may simply have a mean that is not 0."""
    model, tokenizer = qtutor.load_decoder()
    qtutor.quantize(model, qtutor.Recipe(bits=bits, symmetric=True), progress=False)
    folder = qtutor.export(model, tmp_path / "out", "gptq", tokenizer)
    wrong = [f"{Q}.qzeros", "model.layers.1.mlp.up_proj.qzeros"]

    def change(found):
        for name in wrong:
            found[name] = found[name] + torch.tensor(step, dtype=torch.int64).to(torch.int32)

    tensors(change)(folder)
    found = examine(folder, "embedded")
    [one] = [one for one in found.findings if one.kind == "zero points of some layers"]
    assert one.layer == Q and all(part in one.text for part in (f"{wrong[0]} (and in 1 more layers)", said))
    assert not [one for one in found.findings if one.kind in ("zero points", "places")]


@pytest.mark.parametrize("against", [None, "embedded"])
def test_biases_of_mlx_that_are_a_step_off(tmp_path, against):
    """The model is symmetric, so that no shifted zero point leaves the range of the codes."""
    model, tokenizer = qtutor.load_decoder()
    qtutor.quantize(model, qtutor.Recipe(symmetric=True), progress=False)
    folder = qtutor.export(model, tmp_path / "out", "mlx", tokenizer)

    def change(found):
        for name in [name for name in found if name.endswith(".biases")]:
            found[name] += found[name.replace("biases", "scales")]

    tensors(change)(folder)
    check_finds(folder, "zero points", [f"{Q}.biases (and in 13 more layers)", "one too small"], against)


def test_layers_that_multiply_their_inputs_are_healthy(tmp_path):
    """The columns of each down_proj are divided by ``times``, and its inputs are multiplied by ``times``."""
    model, tokenizer = qtutor.load_decoder()
    times = 0.5 + torch.arange(model.config.intermediate_size) % 4
    for block in model.model.layers:
        block.mlp.down_proj.weight.data /= times
    qtutor.quantize(model, qtutor.Recipe(symmetric=True), progress=False)
    folder = qtutor.export(model, tmp_path / "out", "modelopt", tokenizer)
    ends = "down_proj.pre_quant_scale"
    each(ends, lambda one: times.to(one.dtype))(folder)
    for against in (None, "embedded"):
        found = examine(folder, against)
        assert found.healthy and found.run.perplexity < found.run.vocabulary / 2, found.findings
    layers = list(opened(folder, "embedded", "cpu").layers())
    assert len(layers) == 14 and all(distance(one.quantized.dequantize(), one.exact) < 0.3 for one in layers)
    each(ends, torch.ones_like)(folder)  # what a reader computes that does not know these scales
    assert examine(folder).run.perplexity > 1.5 * found.run.perplexity
    layers = list(opened(folder, "embedded", "cpu").layers())
    assert sum(distance(one.quantized.dequantize(), one.exact) > 0.3 for one in layers) == 2


@pytest.mark.parametrize(
    ("name", "change", "against", "part"),
    [
        ("awq", lambda f: [each(k, plainly)(f) for k in ("qweight", "qzeros")], None, "plain order and read in AWQ's"),
        ("awq", lambda f: [each(k, plainly)(f) for k in ("qweight", "qzeros")], "embedded", "plain order and read"),
        ("awq symmetric", each("qweight", plainly), None, "plain order and read in AWQ's"),
        ("modelopt", each("_proj.weight", swapped), None, "nibbles of each byte are swapped"),
        ("modelopt", each("_proj.weight", swapped), "embedded", "nibbles of each byte are swapped"),
        ("gptq", each("qweight", interleaved), "embedded", "AWQ's order and read in the plain one"),
        ("nf4", each("_proj.weight", swapped), "embedded", "nibbles of each byte are swapped"),
    ],
)
def test_wrong_orders_of_nibbles(tmp_path, name, change, against, part):
    found = check_finds(damaged(tmp_path, name, change), "order", [f"{Q}.", "13 more layers", part], against)
    assert found.run.perplexity > 10 * found.run.vocabulary


def test_an_order_that_only_float_tells_shows_in_the_text(tmp_path):
    folder = damaged(tmp_path, "gptq", each("qweight", interleaved))
    check_finds(folder, "forward pass", ["guessing among 1,024 tokens is better", "--against"])


def put(name, value):
    """Set the first number of a tensor."""

    def change(found):
        found[name] = found[name].clone()
        found[name].view(-1)[0] = value

    return tensors(change)


def to_bfloat16(found):
    name = f"{Q}.weight_scale"
    found[name] = found[name].to(torch.bfloat16)
    found[name][3, 0] = 2.0**18


def drop(kind: str):
    return tensors(lambda found: [found.pop(name) for name in list(found) if name.endswith(kind)])


def reverse(found):
    found[f"{Q}.g_idx"] = found[f"{Q}.g_idx"].flip(0)


@pytest.mark.parametrize(
    ("name", "changes", "kind", "parts"),
    [
        ("gptq", [put(f"{Q}.scales", float("nan"))], "scales", [f"{Q}.scales holds 1 of", "(nan)", "in float"]),
        ("awq", [put(f"{Q}.scales", float("inf"))], "scales", [f"{Q}.scales holds 1 of", "(inf)"]),
        ("nf4", [put(f"{Q}.weight.nested_absmax", float("nan"))], "scales", [f"{Q}.weight.nested_absmax"]),
        ("ct", [tensors(to_bfloat16)], "scales", ["the scale 2.62e+05 in bfloat16", "float16", "run it in bfloat16"]),
        ("ct", [put(f"{Q}.weight_scale", 0.0)], "scales", [f"{Q}: 1 of", "scales are 0", "became 0"]),
        ("gptq", [drop("g_idx")], "group index", [f"{Q}.g_idx is missing", "13 more layers", "qtutor convert"]),
        ("gptq", [tensors(reverse)], "group index", ["256 of 256 inputs", "desc_act is false", "set desc_act to true"]),
        ("gptq", [tensors(reverse), setting(desc_act=True)], "group index", ["as desc_act says", "without desc_act"]),
        ("gptq", [put(f"{Q}.g_idx", 9)], "group index", ["groups from 0 to 9", "there are only 4"]),
        ("ct head", [config(tie_word_embeddings=True)], "head", ["lm_head.weight_", "tie_word_embeddings", "left out"]),
        ("ct head", [setting(ignore=["lm_head"])], "head", ["lm_head.weight_", "stays in float", "correct the"]),
        ("ct", [each(f"{Q}.weight_scale", torch.neg)], "scales", [f"{Q}: all of its", "are below 0", "wrong sign"]),
        ("gptq", [tensors(lambda t: t.update({f"{Q}.weight": torch.zeros(256, 256)}))], "unreadable",
         [f"{Q} is there twice, packed and as {Q}.weight"]),
        ("gptq", [config("quantize_config.json", bits=8)], "settings",
         ["quantize_config.json says that bits is 8, and config.json says 4"]),
        ("modelopt", [config("hf_quant_config.json", quantization={"quant_algo": "FP8"})], "settings",
         ["hf_quant_config.json says that quant_algo is 'FP8', and config.json says 'W4A16_AWQ'"]),
        ("ct", [put("model.norm.weight", float("nan"))], "numbers", ["model.norm.weight holds 1"]),
        ("ct", [config("tokenizer_config.json", eos_token="def")], "tokenizer", ["ends texts with token"]),
        ("ct", [config("generation_config.json", eos_token_id=[0, 5000])], "tokenizer", ["eos_token_id is 5000"]),
        ("ct", [lambda f: letters().save_pretrained(f)], "tokenizer", ["tokens and the decoder embeds 1,024"]),
        ("ct", [lambda f: (f / "tokenizer.json").unlink()], "tokenizer", ["tokenizer"]),
        ("ct", [config(intermediate_size=256)], "unreadable", ["weight_packed is", "expected"]),
        ("ct", [config(num_hidden_layers=1)], "unreadable", ["there are 2 blocks, and its config says 1"]),
        ("gptq", [drop("layers.1.mlp.up_proj.qweight")], "unreadable", ["layers.1.mlp.up_proj.qweight is missing"]),
        ("ct", [tensors(lambda t: [t.pop(n) for n in list(t) if ".1.mlp.up_proj." in n])], "unreadable",
         ["1 tensor is missing: model.layers.1.mlp.up_proj.weight"]),
        ("gptq", [setting(quant_method="hqq")], "unreadable", ["quantized by 'hqq'", "qtutor reads compressed-"]),
        ("gptq", [setting(bits=None)], "unreadable", ["bits is None; expected 2, 3, 4 or 8"]),
        ("ct", [lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9])],
         "unreadable", ["truncated"]),
    ],
)  # fmt: skip
def test_each_fault_has_its_finding(tmp_path, name, changes, kind, parts):
    check_finds(damaged(tmp_path, name, *changes), kind, parts)


def test_scales_of_another_size_are_seen_beside_float(tmp_path, capsys):
    """int8 scales that hold the largest weight, as in bitsandbytes, although the format expects the size of a step."""
    folder = damaged(tmp_path, "ct int8", each("weight_scale", lambda scale: scale * 127))
    assert f"{Q} (and 13 more layers): its weights are 1.3e+02 times as large as FLOAT's" in places(folder)[0]
    assert cli.main(["doctor", str(folder), "--json"]) == 1  # without FLOAT, only the forward pass shows it
    found = json.loads(capsys.readouterr().out)
    assert [one["kind"] for one in found["findings"]] == ["forward pass"] and "findings" not in found["run"]


def test_a_packed_embedding(tmp_path):
    def pack(found):
        found["model.embed_tokens.weight_packed"] = torch.zeros(1024, 16, dtype=torch.int32)
        del found["model.embed_tokens.weight"]

    folder = damaged(tmp_path, "ct", tensors(pack))
    check_finds(folder, "embedding", ["model.embed_tokens.weight_packed is packed", "no engine", "left out"])


def test_settings_that_no_engine_takes(tmp_path):
    folder = exported(tmp_path / "out", "modelopt", symmetric=True, group_size=16)[1]
    config(eos_token_id=letters().eos_token_id)(folder)
    found = check_finds(folder, "settings", ["no engine takes it", "tensorrt-llm: ", "groups of 16"])
    assert not any(one.takes for one in found.engines)


def test_engines_say_why_not():
    why = {one.engine: one for one in examine(healthy("gptq asymmetric")).engines}
    assert not why["vllm"].takes and why["vllm"].why.endswith("zero points") and Q in why["vllm"].why
    assert why["transformers"].takes and "gptqmodel" in why["transformers"].why
    assert not why["llama.cpp"].takes and why["llama.cpp"].why == "it does not read gptq"
    assert [one.takes for one in examine(healthy("gptq")).engines] == [True, True, True, False, True, False, False]


def test_another_model_is_told_from_the_one_that_was_quantized(tmp_path):
    model, tokenizer = qtutor.load_decoder()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.copy_(torch.randn_like(layer.weight) * layer.weight.std())
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    check_finds(healthy("gptq"), "another model", [Q, "this is not the model that was quantized"], tmp_path / "other")
    tiny(tied=False).save_pretrained(tmp_path / "tiny")
    letters().save_pretrained(tmp_path / "tiny")
    with pytest.raises(qtutor.QtutorError, match=r"q_proj is \[256, 256\], and in .*tiny it is \[64, 64\]"):
        examine(healthy("gptq"), tmp_path / "tiny")
    with pytest.raises(qtutor.QtutorError, match="is quantized itself: name the float checkpoint"):
        examine(healthy("gptq"), healthy("ours"))


UP, OTHER = "model.layers.1.mlp.up_proj", "model.layers.0.mlp.gate_proj"  # layers of the same shape
MADE = {  # the formats in which a faulty model is written
    "ours": ("qtutor", {}),
    "ours, 2 bits": ("qtutor", {"bits": 2}),
    "gptq": ("gptq", {"symmetric": True}),
    "awq": ("awq", {}),
    "nf4": ("bitsandbytes", {"method": "nf4"}),
    "modelopt": ("modelopt", {"method": "fp8"}),
    "gguf": ("gguf", {"type": "Q4_0"}),
    "float layer": ("qtutor", {"layers": {UP: "float"}}),
}


def written(tmp_path, name: str, form: str, options: dict, change):
    """The embedded decoder as a faulty converter writes it: ``change`` is first applied to one layer's weights."""
    model, tokenizer = qtutor.load_decoder()
    weight = model.get_submodule(name).weight
    weight.data = change(weight.data.clone(), model).contiguous()
    if form == "gguf":
        return qtutor.export(model, tmp_path / "a.gguf", form, tokenizer, **options)
    qtutor.quantize(model, qtutor.Recipe(**options), progress=False)
    return qtutor.export(model, tmp_path / "out", form, tokenizer)


def places(source, against="embedded"):
    found = examine(source, against).findings
    assert {one.kind for one in found} <= {"places", "forward pass"}, found
    return [str(one) for one in found if one.kind == "places"]


@pytest.mark.parametrize("made", MADE)
def test_a_layer_that_is_the_negative_of_float_s(tmp_path, made):
    form, options = MADE[made]
    found = places(written(tmp_path, UP, form, options, lambda weight, model: -weight))
    assert len(found) == 1 and found[0].startswith(f"places: {UP}: its weights are the negative of FLOAT's:"), found


def exchanged(weight, model):
    weight[[3, 9]] = weight[[9, 3]]
    return weight


def partly_negative(weight, model):
    weight[[3, 9, 20]] *= -1
    return weight


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (UP, lambda w, model: w.roll(1, 0), "rows are in other places (row 0 is FLOAT's 511)"),
        (UP, lambda w, model: w.flip(1), "columns are in other places (column 0 is FLOAT's 255)"),
        (UP, lambda w, model: w[torch.randperm(512)] * 0.5, "rows are in other places (row "),
        (UP, lambda w, model: model.get_submodule(OTHER).weight.data, f"its weights are those of {OTHER} in FLOAT"),
        (Q, lambda w, model: w.T, "it is transposed, so that its rows are FLOAT's columns"),
        (UP, exchanged, "at least 2 of 512 rows are in other places (row 3 is FLOAT's 9)"),
        (UP, partly_negative, "at least 3 of 512 rows are the negative of FLOAT's"),
        (UP, lambda w, model: torch.randn_like(w) * w.std(), "its weights are not at all like FLOAT's"),
        ("model.embed_tokens", lambda w, model: w.roll(1, 0), "rows are in other places (row 0 is FLOAT's 1023)"),
    ],
)
def test_weights_in_other_places(tmp_path, name, change, said):
    torch.manual_seed(0)
    found = places(written(tmp_path, name, "qtutor", {}, change))
    assert len(found) == 1 and found[0].startswith(f"places: {name}: ") and said in found[0], found


@pytest.mark.parametrize("recipe", [
    {"bits": 2, "group_size": 0},
    {"method": "hqq", "bits": 2},
    {"method": "gptq", "bits": 2, "group_size": -1, "lm_head": True, "embeddings": True},
    {"method": "awq+gptq", "bits": 2, "group_size": -1, "symmetric": True, "duo": True},
])  # fmt: skip
def test_coarse_grids_are_no_wrong_places(tmp_path, recipe):
    """This holds even if most weights are rounded to 0, if AWQ moves factors, or if GPTQ moves errors."""
    model, tokenizer = qtutor.load_decoder()
    qtutor.add_outliers(model)
    model.save_pretrained(tmp_path / "float")
    tokenizer.save_pretrained(tmp_path / "float")
    qtutor.quantize(model, qtutor.Recipe(**recipe), some_ids(16, 64), progress=False)
    assert not places(qtutor.export(model, tmp_path / "out", tokenizer=tokenizer), tmp_path / "float")


def test_another_model_than_a_folder_of_ours_or_a_gguf_file_was_made_of(tmp_path):
    """A model of the same sizes with different weights, and a model of different sizes. Sizes are checked first."""
    model, tokenizer = qtutor.load_decoder()
    path = qtutor.export(model, tmp_path / "a.gguf", "gguf", tokenizer, type="Q8_0")
    torch.manual_seed(1)
    for weight in model.parameters():
        weight.data = torch.randn_like(weight) * weight.std() if weight.dim() == 2 else weight.data
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    tiny(tied=False).save_pretrained(tmp_path / "tiny")
    letters().save_pretrained(tmp_path / "tiny")
    for source in (healthy("ours"), path):
        found = examine(source, tmp_path / "other").findings
        assert [one.kind for one in found] == ["another model"] and "this is not the model that was" in found[0].text
        with pytest.raises(qtutor.QtutorError, match=r" is \[\d+, 256\], and in .*tiny it is \[\d+, 64\]: that is not"):
            examine(source, tmp_path / "tiny")


def test_a_gguf_file(tmp_path):
    model, tokenizer = qtutor.load_decoder()
    path = qtutor.export(model, tmp_path / "a.gguf", "gguf", tokenizer, type="Q8_0")
    found = examine(path)
    assert (
        found.healthy and found.form == "gguf" and [one.engine for one in found.engines if one.takes] == ["llama.cpp"]
    )
    path.write_bytes(path.read_bytes()[:-100])
    assert [one.kind for one in examine(path).findings] == ["unreadable"]


def test_the_command(tmp_path, capsys):
    assert cli.main(["doctor", str(healthy("ct"))]) == 0
    said = capsys.readouterr().out
    assert "compressed-tensors, 14 packed layers" in said and "\nhealthy\n" in said and "Which engines take it:" in said
    folder = damaged(tmp_path, "gptq", V2)
    assert cli.main(["doctor", str(folder), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["healthy"] and found["findings"][0]["layer"] == Q and len(found["engines"]) == len(TARGETS)
    assert cli.main(["doctor", str(folder)]) == 1
    assert "1. zero points: " in capsys.readouterr().out
    assert cli.main(["doctor", str(tmp_path / "nowhere" / "at" / "all")]) == 2
    assert "does not exist" in flat(capsys.readouterr().err)


def test_a_library_that_decodes_otherwise_is_told(monkeypatch):
    from qtutor.doctor import libraries

    monkeypatch.setattr(libraries, "_awq", lambda layer: layer.quantized.dequantize() * 1.01)
    found = examine(healthy("awq"))
    assert [one.kind for one in found.findings] == ["library"] and "13 more layers" in found.findings[0].text
    monkeypatch.setattr(libraries, "_awq", lambda layer: layer.quantized.dequantize())
    assert examine(healthy("awq")).healthy


def test_loading_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert replace(examine(healthy("ct"))).healthy
