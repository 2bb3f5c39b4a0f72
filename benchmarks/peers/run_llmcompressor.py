"""llm-compressor's side of the comparison; runs in its own environment (setup.py) and its own process.

    .../venv-llmcompressor/bin/python run_llmcompressor.py CHECKPOINT TOKENS OUT --method gptq --bits 4 --group-size 128

CHECKPOINT: a folder with config.json and *.safetensors. TOKENS: a safetensors file with ``token_ids [samples,
length]``. OUT: the folder for its own format. ``--dequantized FOLDER`` also writes the weights that the codes stand
for, in float32.
"""

import argparse
import json

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM


def recipe(options: argparse.Namespace) -> list:
    """What oneshot() is to do; ``options.set`` holds settings that differ from the defaults."""
    more = json.loads(options.set)
    if options.method == "scheme":
        return [QuantizationModifier(targets=["Linear"], scheme=options.scheme, ignore=["lm_head"], **more)]
    weights = QuantizationArgs(
        num_bits=options.bits,
        type="int",
        symmetric=options.symmetric,
        strategy="group",
        group_size=options.group_size,
        **({"observer": more.pop("observer")} if "observer" in more else {}),
    )
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    if options.method == "gptq":
        return [GPTQModifier(config_groups=groups, ignore=["lm_head"], **more)]
    return [AWQModifier(**more), QuantizationModifier(config_groups=groups, ignore=["lm_head"])]


@torch.no_grad()
def dequantized(model: torch.nn.Module) -> torch.nn.Module:
    """The model with plain weights: what its codes, scales and zero points stand for."""
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None or scheme.weights is None:
            continue
        zero = getattr(module, "weight_zero_point", None)
        whole = getattr(module, "weight_global_scale", None)  # NVFP4 has this scale in addition to those of its blocks
        values = fake_quantize(module.weight, module.weight_scale, zero, scheme.weights, global_scale=whole)
        module.weight.copy_(values)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("tokens")
    parser.add_argument("out")
    parser.add_argument("--method", choices=["gptq", "awq", "scheme"], required=True)
    parser.add_argument("--scheme", help="one of compressed-tensors' names, like FP8_DYNAMIC, for --method scheme")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--symmetric", action="store_true")
    parser.add_argument("--set", default="{}", help="settings of the modifier, as JSON")
    parser.add_argument("--dequantized", help="a folder for the dequantized checkpoint")
    options = parser.parse_args()
    # Without a GPU, pinning memory for it fails, and nothing needs it.
    IntermediatesCache.pin_memory = lambda *_: None
    model = AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype=torch.float32)
    ids = load_file(options.tokens)["token_ids"]
    rows = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in ids]
    loader = DataLoader(rows, batch_size=None)
    oneshot(model=model, dataset=loader, recipe=recipe(options), num_calibration_samples=len(rows))
    if options.dequantized:  # before saving, because saving packs the weights in place
        plain = {name: value.clone() for name, value in model.state_dict().items()}
        original = AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype=torch.float32)
        wanted = original.state_dict()
        dequantized(model)
        original.load_state_dict({name: model.state_dict()[name] for name in wanted})
        original.save_pretrained(options.dequantized)
        model.load_state_dict(plain)
    model.save_pretrained(options.out, save_compressed=True)


if __name__ == "__main__":
    main()
