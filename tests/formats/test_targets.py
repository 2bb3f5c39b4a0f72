"""What engines accept: the format that is picked, and if none fits, the layers and choices that the message names."""

import pytest

import qtutor
from qtutor import Recipe
from qtutor.formats import FORMATS
from qtutor.formats.targets import layer_shapes, pick
from qtutor.formats.ways import TARGETS, WAYS
from tests.models import groups_of, tiny

WIDE = {f"model.layers.{block}.{name}": shape for block in range(2) for name, shape in {
    "self_attn.q_proj": (256, 256), "self_attn.k_proj": (128, 256), "self_attn.v_proj": (128, 256),
    "self_attn.o_proj": (256, 256), "mlp.gate_proj": (512, 256), "mlp.up_proj": (512, 256), "mlp.down_proj": (256, 512),
}.items()}  # fmt: skip
NARROW = {name: (rows, columns - 64) if "down" in name else (rows, columns) for name, (rows, columns) in WIDE.items()}


@pytest.mark.parametrize(
    ("target", "recipe", "form"),
    [
        ("vllm", {}, "compressed-tensors"),
        ("vllm", {"bits": 3, "symmetric": True}, "compressed-tensors"),
        ("vllm", {"method": "int8"}, "compressed-tensors"),
        ("vllm", {"method": "fp8", "group_size": 0}, "compressed-tensors"),
        ("vllm-cpu", {"method": "fp8"}, "compressed-tensors"),
        ("transformers", {"method": "fp8"}, "compressed-tensors"),
        ("transformers", {"method": "fp8", "group_size": 128, "layers": {"*.0.*": "float"}}, "compressed-tensors"),
        ("vllm", {"layers": {"*.down_proj": {"bits": 8}}}, "compressed-tensors"),
        ("vllm", {"layers": {"*.0.*": "float"}}, "compressed-tensors"),
        ("vllm-cpu", {"group_size": 16}, "awq"),
        ("sglang", {"group_size": -1}, "compressed-tensors"),
        ("tensorrt-llm", {"symmetric": True}, "modelopt"),
        ("tensorrt-llm", {"method": "fp8"}, "modelopt"),
        ("sglang", {"method": "fp8"}, "compressed-tensors"),
        ("vllm", {"method": "fp8", "group_size": (128, 128)}, "compressed-tensors"),
        ("vllm", {"method": "mxfp4"}, "compressed-tensors"),
        ("vllm", {"method": "gptq", "levels": "nvfp4"}, "compressed-tensors"),
        ("sglang", {"method": "awq", "levels": "mxfp4", "layers": {"*.0.*": "float"}}, "compressed-tensors"),
        ("transformers", {"method": "nvfp4", "lm_head": True}, "compressed-tensors"),
        ("transformers", {"bits": 5, "group_size": 8}, "compressed-tensors"),
        ("transformers", {"bits": 3.5, "symmetric": True}, "compressed-tensors"),
        ("transformers", {"method": "nf4"}, "bitsandbytes"),
        ("transformers", {"method": "int8"}, "bitsandbytes"),
        ("mlx", {"bits": 5, "layers": {"*.down_proj": {"bits": 8}, "*.up_proj": "float"}}, "mlx"),
        ("llama.cpp", {"bits": 5}, "gguf"),
    ],
)
def test_the_format_is_picked(target, recipe, form):
    choice = pick(target, WIDE, Recipe(**recipe))
    assert choice.format == form and choice.format in FORMATS and choice.known
    assert choice.recipe is (form != "gguf")


@pytest.mark.parametrize(
    ("target", "recipe", "shapes", "parts"),
    [
        ("vllm", {"bits": 3}, WIDE, ["14 of 14 layers (model.layers.0.self_", "zero points", "symmetric=True"]),
        ("vllm", {"method": "sinq"}, WIDE, ["14 of 14", "each input is multiplied by its own number", "method='hqq'"]),
        ("tensorrt-llm", {"method": "sinq", "symmetric": True}, WIDE, ["10 of 14", "multiplied by its own number"]),
        ("vllm", {"group_size": 16}, WIDE, ["groups of 16", "group_size=-1 or 32 or 64 or 128"]),
        ("vllm", {}, NARROW, ["2 of 14 layers (model.layers.0.mlp.down_proj, model.layers.1.mlp.down_proj)",
                              "448 inputs, no multiple of 128", "{'model.layers.0.mlp.down_proj': 'float', ...}"]),
        ("vllm", {"layers": {"*.q_proj": {"bits": 8}}}, WIDE, ["6 of 14", "joins it with", "one choice for q, k, v"]),
        ("vllm", {"layers": {"*.up_proj": "float"}}, WIDE, ["2 of 12 layers", "gate_proj", "joins it with layers"]),
        ("vllm", {"method": "nf4"}, WIDE, ["its levels are nf4", "method='rtn', 'gptq' or 'awq'"]),
        ("vllm", {"bits": 3.5, "symmetric": True}, WIDE, ["layer would get its own number of bits", "whole bits"]),
        ("vllm", {"embeddings": True}, WIDE, ["no quantized embeddings"]),
        ("vllm-cpu", {"bits": 8, "symmetric": True}, WIDE, ["8 bits", "bits=4"]),
        ("vllm-cpu", {"method": "fp8", "group_size": 0}, WIDE, ["groups of 0", "group_size=-1"]),
        ("tensorrt-llm", {}, WIDE, ["'modelopt'", "zero points", "symmetric=True"]),
        ("tensorrt-llm", {"symmetric": True, "group_size": 32}, WIDE, ["groups of 32", "group_size=64 or 128"]),
        ("transformers", {"layers": {"*.down_proj": {"bits": 8}}}, WIDE, ["2 of 14", "one bits", "or symmetric=True"]),
        ("mlx", {"bits": 7, "group_size": 16}, WIDE, ["7 bits", "groups of 16", "group_size=32 or 64 or 128"]),
        ("transformers", {"group_size": 0}, WIDE, ["groups of 0", "group_size=-1 or 32"]),
        ("vllm-cpu", {"method": "mxfp4"}, WIDE, ["14 of 14", "its levels are mxfp4", "method='rtn', 'gptq' or 'awq'"]),
        ("sglang", {"method": "fp8", "group_size": 128}, WIDE, ["scales of blocks of 128 x 128", "group_size=-1 or 0"]),
        ("tensorrt-llm", {"levels": "nvfp4"}, WIDE, ["its levels are nvfp4"]),
        ("vllm", {"method": "nvfp4"}, NARROW, ["2 of 14 layers", "448 inputs, no multiple of 128"]),
        ("transformers", {"method": "fp8", "group_size": 128}, NARROW, ["2 of 14", "448 inputs, no multiple of 128"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_with_what_would(target, recipe, shapes, parts):
    with pytest.raises(qtutor.QtutorError) as caught:
        pick(target, shapes, Recipe(**recipe))
    text = str(caught.value)
    assert all(part in text for part in parts) and len(text) < 700, text


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_first_three_layers_are_named(count):
    """Dots stand for more layers only."""
    shapes = {name: (64, 64) for name in list(WIDE)[:count]}
    with pytest.raises(qtutor.QtutorError) as caught:
        pick("vllm", shapes, Recipe(bits=3))
    names = ", ".join(list(shapes)[:3]) + (" ..." if count == 4 else "")
    assert f"{count} of {count} layers ({names}), " in str(caught.value)


def test_a_packed_head_is_named():
    recipe = Recipe(lm_head=True)
    shapes = layer_shapes(tiny(), recipe)
    assert shapes["lm_head"] == (256, 64) and len(shapes) == 15
    assert pick("transformers", shapes, recipe).format == "compressed-tensors"
    with pytest.raises(qtutor.QtutorError, match=r"1 of 15 layers \(lm_head\).*the head is packed.*lm_head=False"):
        pick("vllm-cpu", {name: (64, 128) for name in shapes}, recipe)


def test_an_unknown_target():
    with pytest.raises(qtutor.QtutorError, match=r"target = 'ollama': choose one of 'vllm', .*'llama\.cpp'"):
        pick("ollama", WIDE, Recipe())


@pytest.mark.parametrize("target", [target for target in TARGETS if target in WAYS])
def test_what_is_picked_is_written(tmp_path, target):
    """The exporter accepts what the table lists for the engine: one recipe for each way is written."""
    model = tiny()
    for way in WAYS[target]:
        recipe = (
            {"method": way.grid} if way.grid != "integers" else {"bits": way.bits[0], "symmetric": way.symmetric[0]}
        )
        if way.grid == "fp8 tiles":
            continue  # tiles need wider rows than the tiny decoder has; tests/core/test_tiles.py writes them
        size = groups_of(recipe.get("method", "rtn"), 32 if 32 in (way.groups or (32,)) else 64)
        recipe = Recipe(**recipe, **size, lm_head=way.head)
        quantized = tiny()
        qtutor.quantize(quantized, recipe, progress=False)
        if way.grid == "int8" and way.format != "bitsandbytes":
            for layer in quantized.modules():
                layer.threshold = None
        qtutor.export(quantized, tmp_path / "out", way.format)
    assert layer_shapes(model, Recipe())
