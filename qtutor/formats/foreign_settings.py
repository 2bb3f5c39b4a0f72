"""Finds the settings by which a folder says that it is quantized, and the format that they belong to."""

import importlib
from pathlib import Path

from qtutor.errors import QtutorError, shown
from qtutor.formats import FOREIGN
from qtutor.formats.checkpoint import CONFIG
from qtutor.formats.documents import AGAIN, file_in, read_json
from qtutor.formats.foreign import Format

# The second is the key of compressed-tensors before 0.4. The third is MLX's; newer MLX files have the first, too.
IN_CONFIG = ("quantization_config", "compression_config", "quantization")
# Files that had the settings before config.json did, or still have them; and the quant_method if they do not say it.
BESIDE = {"hf_quant_config.json": "modelopt", "quantize_config.json": "gptq"}


def settings_in(folder: Path) -> tuple[dict, str] | None:
    """The quantization settings of a folder, and the file that they come from; ``None`` if there are none.

    The settings always have a quant_method. Raises :class:`QtutorError` for settings that are no object.
    """
    path = file_in(folder, CONFIG)
    values = read_json(path) if path is not None else {}
    for key in IN_CONFIG:
        if values.get(key) is not None:
            if not isinstance(values[key], dict):
                raise QtutorError(f"{path}: {key} is {shown(values[key])}, expected an object. {AGAIN}")
            if key == IN_CONFIG[2] and values[key].get("quant_method", "mlx") != "mlx":
                continue  # no engine looks for another tool's settings there
            usual = {"quant_method": "compressed-tensors"} if key == IN_CONFIG[1] else {}
            usual |= {"quant_method": "bitsandbytes"} if {"load_in_4bit", "load_in_8bit"} & values[key].keys() else {}
            if values.get("quantization") is not None:
                usual["quant_method"] = "mlx"
                _check_same(values, key, path)
            return usual | values[key], str(path)
    for name, method in BESIDE.items():
        beside = file_in(folder, name)
        if beside is not None and path is not None:
            return {"quant_method": method, **read_json(beside)}, str(beside)
    return None


def _check_same(values: dict, key: str, path: Path) -> None:
    """MLX reads ``quantization`` alone; the copy of it, at ``key``, has to say the same."""
    copy = {name: value for name, value in values[key].items() if name != "quant_method"}
    if values[key].get("quant_method", "mlx") == "mlx" and copy != values["quantization"]:
        raise QtutorError(
            f"{path}: {key} differs from quantization, which is the one that MLX looks at: the file was edited, or is "
            f"damaged. {AGAIN}"
        )


def format_of(settings: dict, where: str) -> Format:
    """The format that ``settings`` belong to. For an unknown one, raises :class:`QtutorError` naming the known ones."""
    method = settings.get("quant_method")
    if not isinstance(method, str) or method not in FOREIGN:
        raise QtutorError(
            f"{where}: the model is quantized by {shown(method)}, which is not read here. qtutor reads "
            f"{', '.join(FOREIGN)}, GGUF files and qtutor's own folders; or take the float checkpoint that it was made "
            "of."
        )
    return importlib.import_module(f"qtutor.formats.{FOREIGN[method]}").FORMAT
