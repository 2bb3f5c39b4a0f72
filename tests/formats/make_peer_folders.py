"""Write peer_folders/: a small Llama as llm-compressor and GPTQModel themselves quantize and save it.

    python benchmarks/peers/setup.py && python -m tests.formats.make_peer_folders

weights.json has the SHA-256 of each layer's weights, as the tool itself decodes them.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file

from tests.gguf.small_tokenizers import letters
from tests.models import tiny

FOLDERS = Path(__file__).with_name("peer_folders")
WEIGHTS = FOLDERS / "weights.json"
PEERS = Path(__file__).resolve().parents[2] / "benchmarks" / "peers"
INTEGERS = ["--bits", "4", "--group-size", "32"]
MADE = {  # folder -> the tool and its options
    "llmcompressor_gptq": ("llmcompressor", ["--method", "gptq", "--symmetric", *INTEGERS]),
    "llmcompressor_awq": ("llmcompressor", ["--method", "awq", *INTEGERS]),
    "gptqmodel_gptq": ("gptqmodel", ["--method", "gptq", "--symmetric", *INTEGERS]),
    "gptqmodel_zero_points": ("gptqmodel", ["--method", "gptq", *INTEGERS]),
    **{
        f"llmcompressor_{scheme}": ("llmcompressor", ["--method", "scheme", "--scheme", scheme])
        for scheme in ("W8A8", "FP8_DYNAMIC", "MXFP4A16", "NVFP4A16")
    },
}
# The tools multiply codes by their scales in a different order here, which changes the last bits of float32.
IN_16_BITS = ("llmcompressor_W8A8", "llmcompressor_NVFP4A16")
KEPT = ("config.json", "model.safetensors", "quantize_config.json")


def digest(weight: torch.Tensor, name: str) -> str:
    """The SHA-256 of a layer's weights. In folders of :data:`IN_16_BITS`, they are rounded to bfloat16 first."""
    weight = weight.bfloat16().float() if name in IN_16_BITS else weight.float()
    return hashlib.sha256((weight + 0.0).contiguous().numpy().tobytes()).hexdigest()  # -0.0 becomes 0.0


def make(name: str, base: Path) -> dict[str, str]:
    """Write the folder ``name`` and return the digests of its layers."""
    sys.path.insert(0, str(PEERS))
    from launch import python_of

    who, options = MADE[name]
    out, plain = base / name, base / f"{name}_plain"
    program = [python_of(who), PEERS / f"run_{who}.py", base / "float", base / "tokens.safetensors", out]
    subprocess.run(list(map(str, [*program, *options, "--dequantized", plain])), check=True)
    shutil.rmtree(FOLDERS / name, ignore_errors=True)
    (FOLDERS / name).mkdir(parents=True)
    for file in KEPT:
        if (out / file).exists():
            shutil.copy(out / file, FOLDERS / name / file)
    weights = load_file(plain / "model.safetensors")
    return {layer: digest(weight, name) for layer, weight in weights.items() if layer.endswith("_proj.weight")}


def main() -> None:
    model = tiny()
    model.config.architectures = ["LlamaForCausalLM"]
    with TemporaryDirectory() as base:
        model.save_pretrained(Path(base) / "float")
        letters().save_pretrained(Path(base) / "float")
        ids = torch.randint(0, model.config.vocab_size, (8, 64), generator=torch.Generator().manual_seed(0))
        save_file({"token_ids": ids}, Path(base) / "tokens.safetensors")
        found = {name: make(name, Path(base)) for name in MADE}
    WEIGHTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
