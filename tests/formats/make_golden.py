"""Write golden.json: SHA-256 of whole folders as they were when they were last compared with an engine or its source.

    python -m tests.formats.make_golden

SGLang, and TensorRT-LLM on GPUs, do not run here, so the files for them must not change unnoticed. The embedded
decoder is rounded to nearest, which gives the same result on every CPU.
"""

import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import qtutor

GOLDEN = Path(__file__).with_name("golden.json")
FOLDERS = {
    "compressed-tensors": ("compressed-tensors", {"bits": 4, "symmetric": True, "group_size": 64}),
    "compressed-tensors, zero points": ("compressed-tensors", {"bits": 8, "group_size": 32}),
    "compressed-tensors, FP8": ("compressed-tensors", {"method": "fp8"}),
    "gptq": ("gptq", {"bits": 4, "symmetric": True, "group_size": 64}),
    "gptq, zero points": ("gptq", {"bits": 3, "group_size": 64}),
    "awq": ("awq", {"bits": 4, "group_size": 64}),
    "bitsandbytes": ("bitsandbytes", {"method": "nf4", "double": False}),
    "modelopt": ("modelopt", {"bits": 4, "symmetric": True, "group_size": 64}),
    "modelopt, FP8": ("modelopt", {"method": "fp8"}),
    "mlx": ("mlx", {"bits": 4, "group_size": 64}),
}
SETTINGS = ("quantization_config", "quantization")  # the rest of config.json depends on transformers' version


def digests(name: str, folder: Path) -> dict[str, str]:
    """Write a folder to ``folder`` and return the digest of each file: of the weights, and of settings about them."""
    form, recipe = FOLDERS[name]
    model, _ = qtutor.load_decoder(device="cpu")
    qtutor.quantize(model, qtutor.Recipe(**recipe), progress=False)
    written = qtutor.export(model, folder, form)
    config = json.loads((written / "config.json").read_text())
    said = json.dumps({key: config[key] for key in SETTINGS if key in config}, sort_keys=True).encode()
    files = {path.name: path.read_bytes() for path in written.glob("*quant*_config.json")}
    files |= {"model.safetensors": (written / "model.safetensors").read_bytes(), "config.json": said}
    return {file: hashlib.sha256(data).hexdigest() for file, data in sorted(files.items())}


if __name__ == "__main__":
    with TemporaryDirectory() as place:
        made = {name: digests(name, Path(place) / str(at)) for at, name in enumerate(FOLDERS)}
    GOLDEN.write_text(json.dumps(made, indent=1) + "\n")
