"""The conditions for an attempt before :mod:`.capstone` measures it; a refusal is in words for the learner."""

import tempfile
from pathlib import Path

from torch import nn

import qtutor
from qtutor.core.quantized import all_finite
from qtutor.decoder import EMBEDDED
from qtutor.errors import QtutorError
from qtutor.formats.gguf_files import located
from qtutor.guards.model import decoder_of
from qtutor.loading import weight_bytes
from qtutor.measure.losses import model_bytes
from qtutor.recipe import Recipe
from qtutor.report import Report
from qtutor.runtime.linear import QuantWeight

# A config that differs in one of these belongs to another model.
SHAPE = (
    *("model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size"),
    *("num_attention_heads", "num_key_value_heads"),
)


class Refused(QtutorError):
    """Why an attempt is not measured, in words for the learner."""


def brought(attempt, of: str | Path) -> tuple[nn.Module, int]:
    """The model that an attempt names, read back from the disk, and the bytes of its weights."""
    if isinstance(attempt, str | Path):
        if _place(attempt).exists() and _place(attempt).samefile(_place(of)):
            raise Refused(
                f"{attempt} is the float model itself. Quantize it, and name the folder or file that you wrote."
            )
        model, _ = qtutor.load(attempt, device="cpu")
        return model, weight_bytes(attempt, model)
    model = decoder_of(_model_in(attempt))
    if not any(isinstance(module, QuantWeight) for module in model.modules()):
        raise Refused(
            f"this is a float model of {model_bytes(model):,} bytes: none of its layers is packed. Quantize it with "
            "qtutor.quantize(model, recipe). If it comes from a .gguf file, give the file's name: in memory its "
            "weights are float."
        )
    with tempfile.TemporaryDirectory() as folder:  # only what can be saved counts
        back = qtutor.load_quantized(qtutor.export(model, Path(folder) / "attempt"), device="cpu")
        return back, model_bytes(back)


def _model_in(attempt) -> nn.Module:
    """``attempt`` if it is a model, else :class:`Refused` with the likely mistake."""
    if isinstance(attempt, nn.Module):
        return attempt
    likely = "Give the quantized model, or the name of a folder or a .gguf file."
    if attempt is None:
        likely = "Does your function end without a return?"
    elif isinstance(attempt, Report):
        likely = "qtutor.quantize changes the model in place and returns a report: give the model, not the report."
    elif isinstance(attempt, Recipe):
        likely = "A recipe is only a plan: quantize a model with it, and give that model."
    elif isinstance(attempt, tuple | list) and any(isinstance(part, nn.Module) for part in attempt):
        likely = "qtutor.load returns model and tokenizer: give the model alone."
    elif isinstance(attempt, type):
        likely = "That is a class: give a model, which is an instance of it."
    elif callable(attempt):
        likely = "That is a function: call it, with parentheses after its name."
    elif isinstance(attempt, dict):
        likely = "A dict of tensors is not a model: load the tensors into a model first."
    raise Refused(f"this is not a model but {_called(attempt)}. {likely}")


def _called(thing) -> str:
    name = type(thing).__name__
    return "None" if thing is None else f"a{'n' * (name[0].lower() in 'aeio')} {name}"


def _place(source: str | Path) -> Path:
    return Path(EMBEDDED if source == "embedded" else located(source))


def check_shape(model: nn.Module, float_model: nn.Module) -> None:
    """Refuse a model that was not made from this float model."""
    for name in SHAPE:
        mine, right = getattr(model.config, name, None), getattr(float_model.config, name, None)
        if mine != right:
            raise Refused(
                f"this is another model: its {name} is {mine}, and the float model's is {right}. The task is this "
                "model in fewer bytes, with all of its layers."
            )


def check_numbers(model: nn.Module) -> None:
    """Refuse NaN and infinity, naming the tensor."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not all_finite(tensor):
            raise Refused(
                f"{name} holds NaN or infinity. A scale of 16 bits can be at most 65,504, and 0 / 0 is NaN: check "
                "how this tensor was made."
            )


def check_size(model: nn.Module, nbytes: int, limit: int) -> None:
    """Refuse a model that takes too many bytes, and say where most of them are."""
    if nbytes <= limit:
        return
    raise Refused(f"it needs {nbytes:,} bytes, {nbytes - limit:,} too many: the limit is {limit:,}. {_largest(model)}")


def _largest(model: nn.Module) -> str:
    """A sentence about the float matrices that are left."""
    floats = {
        name.removesuffix(".weight"): tensor.nbytes
        for name, tensor in model.named_parameters()
        if tensor.is_floating_point() and tensor.dim() > 1
    }
    if not floats:
        return "All of its matrices are packed, so use fewer bits, or larger groups."
    if not any(isinstance(module, QuantWeight) for module in model.modules()):
        return "None of its layers is packed. Choose fewer bits, or a smaller type of file."
    name = max(floats, key=floats.get)
    return f"The largest matrix in float is {name}, with {floats[name]:,} bytes."
