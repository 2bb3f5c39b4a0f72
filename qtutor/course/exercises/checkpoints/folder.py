"""``checkpoints.folder``: write a whole checkpoint; a reader then loads it and continues a text.

The function returns nothing. The check compares a reader's answer about the folder (:mod:`.readers`): its message if it
refuses the folder, and the tokens that the folder's model writes.
"""

import json
import tempfile
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file

from qtutor.core.grid import IntGrid
from qtutor.core.quantized import QuantizedTensor
from qtutor.course.exercises.checkpoints.readers import seen
from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.families import family_of
from qtutor.formats.transformers_files import shapes_alone
from qtutor.formats.words import to_words
from qtutor.guards.promises import is_tied
from qtutor.methods import rtn
from qtutor.runtime.linear import QuantWeight


class Named(dict):
    """Tensors or layers by name; a message shows their number and the first names."""

    def __repr__(self) -> str:
        return f"{len(self)} by name: {', '.join(list(self)[:3])} ..."


class Config(dict):
    """A config.json as a dict; a message shows only two of its settings."""

    def __repr__(self) -> str:
        return f"a config.json of {self['num_hidden_layers']} blocks, tie_word_embeddings {self['tie_word_embeddings']}"


class EmptyFolder:
    """A placeholder for a folder as an input: each copy is a new, empty folder, deleted when the program ends."""

    def __deepcopy__(self, memo) -> Path:
        return Path(tempfile.mkdtemp(dir=_root().name))

    def __repr__(self) -> str:
        return "an empty folder"


@cache
def _root() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="qtutor-")


def pieces_of(model) -> tuple[dict, dict[str, torch.Tensor], dict[str, QuantizedTensor]]:
    """The parts of a checkpoint of a quantized ``model``: its config, tensors that stay in float, packed layers."""
    packed = {name: module for name, module in model.named_modules() if isinstance(module, QuantWeight)}
    tied = f"{family_of(model).head}.weight" if is_tied(model) else None
    floats = {
        name: tensor.detach().contiguous()
        for name, tensor in model.state_dict().items()
        if name != tied and name.rpartition(".")[0] not in packed
    }
    config = json.loads(model.config.to_json_string(use_diff=False))
    return config, Named(floats), Named({name: layer.quantized() for name, layer in packed.items()})


def inputs_of(blocks: int, tied: bool, group_size: int) -> tuple:
    """A small decoder with packed layers. Its random weights are large, so that a wrong weight changes the tokens."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=blocks, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=48, max_position_embeddings=64, tie_word_embeddings=tied, eos_token_id=0, bos_token_id=0,
        architectures=["LlamaForCausalLM"], dtype="float32",
    )  # fmt: skip
    generator = torch.Generator().manual_seed(blocks)
    floats, layers = Named(), Named()
    for name, tensor in shapes_alone(config).state_dict().items():
        layer = name.removesuffix(".weight")
        values = torch.randn(tensor.shape, generator=generator)
        if layer.endswith("_proj"):
            layers[layer] = rtn.quantize(values, IntGrid(4, symmetric=True), group_size)
        elif name != "lm_head.weight" or not tied:
            floats[name] = values if values.dim() == 2 else 1 + 0.1 * values
    return EmptyFolder(), Config(json.loads(config.to_json_string(use_diff=False))), floats, layers


def cases():
    return [
        ("a decoder of one block, its head tied to the embedding", inputs_of(1, True, 32)),
        ("a decoder of two blocks with a head of its own, groups of 64", inputs_of(2, False, 64)),
    ]


@solution
def right(folder, config, floats, layers):
    tensors = dict(floats)
    for name, layer in layers.items():
        tensors[f"{name}.weight_packed"] = to_words(layer.codes, 4)
        tensors[f"{name}.weight_scale"] = layer.scales
        tensors[f"{name}.weight_shape"] = torch.tensor(layer.shape)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    size = next(iter(layers.values())).group_size
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": size}
    group = {"targets": ["Linear"], "weights": weights}
    settings = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    settings |= {"quantization_status": "compressed", "config_groups": {"group_0": group}, "ignore": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))


def folder_of(folder, config, floats, layers):
    """The folder by the package: the exporter's own functions, one after the other."""
    from qtutor.formats import compressed_settings
    from qtutor.formats import compressed_tensors as format
    from qtutor.formats.foreign import Layout

    layout = next(Layout(layer.grid, layer.group_size, format.PACKED) for layer in layers.values())
    tensors = {f"{n}.{kind}": t for n, one in layers.items() for kind, t in format.encode(one, layout).items()}
    save_file(tensors | floats, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {"quant_method": format.METHOD, "format": format.PACKED, "quantization_status": "compressed"}
    groups = {"group_0": {"targets": ["Linear"], **compressed_settings.scheme(layout)}}
    config = {**config, "quantization_config": {**settings, "config_groups": groups, "ignore": ["lm_head"]}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


CODES, SCALES, SHAPE = "to_words(layer.codes, 4)", "= layer.scales", "torch.tensor(layer.shape)"
WRITTEN = 'config | {"quantization_config": settings}'

MISTAKES = {
    "config.json has no quantization_config, so a reader looks for float weights. Add it as a key of the config.": (
        right.edit(WRITTEN, "config")
    ),
    "config.json holds the settings alone. They are one more key, quantization_config, of the decoder's config.": (
        right.edit(WRITTEN, "settings")
    ),
    "quant_method is missing: it tells a reader which format this is.": (
        right.edit('"quant_method": "compressed-tensors", ', "")
    ),
    'the status is missing: "quantization_status": "compressed" tells an engine that the weights are packed '
    "already.": right.edit('{"quantization_status": "compressed", "config_groups"', '{"config_groups"'),
    'the format is missing: compressed-tensors has several, and this one is "pack-quantized".': (
        right.edit(
            '{"quant_method": "compressed-tensors", "format": "pack-quantized"}',
            '{"quant_method": "compressed-tensors"}',
        )
    ),
    'the settings say that there are zero points. These layers are symmetric: "symmetric": True.': (
        right.edit('"symmetric": True', '"symmetric": False')
    ),
    "the settings say 8 bits. These codes have 4.": right.edit('"num_bits": 4', '"num_bits": 8'),
    "the settings say groups of 128, but the layers have other groups: take layer.group_size.": (
        right.edit('"group_size": size', '"group_size": 128')
    ),
    'the words are called "weight". They are called "weight_packed".': right.edit(".weight_packed", ".weight"),
    "the words are arranged as in a GPTQ file, [in / 8, out]. Here every output has a row: transpose them back.": (
        right.edit(CODES, f"{CODES}.T.contiguous()")
    ),
    "the scales are transposed, as in a GPTQ file. Here they are [out, groups], as in the layer.": (
        right.edit(SCALES, "= layer.scales.T.contiguous()")
    ),
    "the scales are missing: every packed layer has a weight_scale.": (
        right.edit('tensors[f"{name}.weight_scale"] = layer.scales', "pass")
    ),
    "weight_shape is missing: the two numbers [out, in], since the last word of a row may be partly empty.": (
        right.edit('tensors[f"{name}.weight_shape"] = torch.tensor(layer.shape)', "pass")
    ),
    "weight_shape is the other way round. It is [out, in], which is layer.shape.": (
        right.edit(SHAPE, "torch.tensor(layer.shape[::-1])")
    ),
    "only the packed layers are in the file. The embedding, the norms and the head belong there too: floats.": (
        right.edit("tensors = dict(floats)", "tensors = {}")
    ),
    "only the first layer is in the file: save the file after the loop.": (
        right.edit("in layers.items()", "in list(layers.items())[:1]")
    ),
    'the head is not ignored. It is a Linear in float: "ignore": ["lm_head"].': (
        right.edit('"ignore": ["lm_head"]', '"ignore": []')
    ),
    "the codes are packed in AWQ's order. Here they are one after the other.": (
        right.edit("layer.codes, 4", "layer.codes.reshape(-1, 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(layer.shape), 4")
    ),
    "the first code of a word is in its highest bits. It belongs in the lowest.": (
        right.edit("layer.codes, 4", "layer.codes.reshape(-1, 8).flip(1).reshape(layer.shape), 4")
    ),
    "8 was subtracted from the codes. They are stored as they are, from 0 to 15.": (
        right.edit("layer.codes, 4", "(layer.codes - 8) & 15, 4")
    ),
    "every byte holds one code. Eight codes of 4 bits fill a word.": right.edit("layer.codes, 4", "layer.codes, 8"),
    "the words are bytes, uint8. Engines read int32.": right.edit(CODES, f"{CODES}.view(torch.uint8)"),
    "the file does not have the name that engines look for, model.safetensors.": (
        right.edit('"model.safetensors"', '"weights.safetensors"')
    ),
    "config.json is written as Python prints a dict. It has to be JSON: json.dumps.": right.edit(
        f"json.dumps({WRITTEN})", f"str({WRITTEN})"
    ),
    "nothing was written into the folder.": lambda folder, config, floats, layers: None,
    "there is no config.json.": right.edit('"config.json"', '"configuration.json"'),
}

FOLDER = Exercise(
    name="checkpoints.folder",
    title="A folder that an engine loads",
    difficulty=3,
    minutes=20,
    reference=folder_of,
    cases=cases,
    outputs=("what the reader says", "tokens"),
    mistakes=MISTAKES,
    seen=seen,
)
