"""GPTQModel's side of the comparison; runs in its own environment (setup.py) and its own process.

    .../venv-gptqmodel/bin/python run_gptqmodel.py CHECKPOINT TOKENS OUT --method gptq --bits 4 --group-size 128

The arguments are those of run_llmcompressor.py. GPTQModel packs while it quantizes, so the dequantized checkpoint is
made from the files that it wrote.
"""

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # by default it uses one worker, and then waits for a second one

import torch
from gptqmodel import BACKEND, GPTQModel
from gptqmodel.quantization import AWQConfig, GPTQConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # nibble AWQ_ORDER[i] of a word holds column 8c + i


def fields(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The ``bits``-wide numbers in int32 ``words [..., count]``, low bits first: int32 ``[..., count * 32 / bits]``."""
    single = (words.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32)) & 1  # [..., count, 32]
    single = single.flatten(-2).unflatten(-1, (-1, bits))
    return (single << torch.arange(bits, dtype=torch.int32)).sum(dim=-1).int()


def gptq_weight(packed: dict[str, torch.Tensor], bits: int, zero_offset: int) -> torch.Tensor:
    """``[out, in]`` from qweight ``[in * bits / 32, out]``, qzeros, scales ``[groups, out]``, g_idx ``[in]``."""
    codes = fields(packed["qweight"].T.contiguous(), bits)  # [out, in]
    zeros = fields(packed["qzeros"], bits) + zero_offset  # [groups, out]
    group = packed["g_idx"].long()
    return (codes - zeros[group].T) * packed["scales"][group].T.float()


def awq_weight(packed: dict[str, torch.Tensor], group_size: int) -> torch.Tensor:
    """``[out, in]`` from AWQ's GEMM layout: qweight ``[in, out / 8]``, qzeros ``[groups, out / 8]``, scales."""
    order = torch.tensor(AWQ_ORDER)
    codes, zeros = (
        fields(packed[name], 4).unflatten(-1, (-1, 8))[..., order].flatten(-2) for name in ("qweight", "qzeros")
    )
    zeros, scales = (tensor.repeat_interleave(group_size, dim=0) for tensor in (zeros, packed["scales"]))
    return ((codes - zeros) * scales.float()).T


def dequantize(checkpoint: str, out: str, folder: str) -> None:
    """Write a float32 checkpoint of what ``out`` holds to ``folder``; ``checkpoint`` lends its architecture."""
    about = json.loads((Path(out) / "quantize_config.json").read_text())
    bits, group_size = about["bits"], about["group_size"]
    tensors = {}
    for file in Path(out).glob("*.safetensors"):
        tensors |= load_file(file)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    weights = {}
    for name in model.state_dict():
        layer = name.removesuffix(".weight")
        packed = {key: tensors[f"{layer}.{key}"] for key in ("qweight", "qzeros", "scales", "g_idx") if
                  f"{layer}.{key}" in tensors}  # fmt: skip
        if not packed:
            weights[name] = tensors.get(name, tensors.get("model.embed_tokens.weight")).float()
        elif about["quant_method"] == "awq":
            weights[name] = awq_weight(packed, group_size)
        else:
            weights[name] = gptq_weight(packed, bits, 1 if about["checkpoint_format"] == "gptq" else 0)
    model.load_state_dict(weights)
    model.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("tokens")
    parser.add_argument("out")
    parser.add_argument("--method", choices=["gptq", "awq"], required=True)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--symmetric", action="store_true")
    parser.add_argument("--set", default="{}", help="settings of the config, as JSON")
    parser.add_argument("--dequantized", help="a folder for the dequantized checkpoint")
    options = parser.parse_args()
    more = json.loads(options.set)
    kind = GPTQConfig if options.method == "gptq" else AWQConfig
    config = kind(
        bits=options.bits, group_size=options.group_size, sym=options.symmetric, device="cpu",
        offload_to_disk=False, **more,
    )  # fmt: skip
    ids = load_file(options.tokens)["token_ids"]
    # On a CPU its AWQ layers refuse float32. They accept two other dtypes, of which float16 is the more exact.
    dtype = torch.float32 if options.method == "gptq" else torch.float16
    model = GPTQModel.load(options.checkpoint, config, dtype=dtype)
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
    backend = BACKEND.AUTO if options.method == "gptq" else BACKEND.AWQ_TORCH
    model.quantize(rows, batch_size=1, backend=backend)
    model.save(options.out)
    if options.dequantized:
        dequantize(options.checkpoint, options.out, options.dequantized)


if __name__ == "__main__":
    main()
