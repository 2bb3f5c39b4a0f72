"""What can be done with layers that are quantized already: which formats hold them, which engines accept them.

:mod:`.targets` has the rules. Here they are applied to packed layers from a folder instead of a recipe. The formats
that transformers reads with gptqmodel, which nobody would choose for a new checkpoint, are added.
"""

import importlib
import shlex
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from qtutor.errors import QtutorError
from qtutor.formats import FOREIGN
from qtutor.formats.foreign import linear_names, packed_layers
from qtutor.formats.targets import misfits
from qtutor.formats.ways import AWQ, GPTQ, RAN, TARGETS, WAYS, Way
from qtutor.runtime.linear import QuantLinear

BY_GPTQMODEL = f"{RAN}, with the package gptqmodel"
ALSO = {
    "transformers": (
        Way(GPTQ, bits=(2, 3, 4, 8), rows=32, columns=32, joined=False, known=BY_GPTQMODEL),
        Way(AWQ, bits=(4,), rows=32, columns=32, mixed=False, joined=False, known=BY_GPTQMODEL),
    )
}
STARTS = {
    "vllm": "vllm serve {}",
    "sglang": "python -m sglang.launch_server --model-path {}",
    "tensorrt-llm": "trtllm-serve {}",
    "transformers": "transformers chat {}",
    "mlx": "mlx_lm.chat --model {}",
}


@dataclass(frozen=True)
class Verdict:
    """Whether an engine accepts a folder. why: how this is known, or what the obstacle is."""

    engine: str
    takes: bool
    why: str


def verdicts(form: str, layers: Mapping[str, QuantLinear], against: Mapping[str, str] | None = None) -> list[Verdict]:
    """The verdict of each engine on packed ``layers`` in the format ``form``; empty ``layers`` mean a float checkpoint.

    against: by engine, a further obstacle.
    """
    shapes = {name: (layer.rows, layer.columns) for name, layer in layers.items()}
    return [_verdict(engine, form, shapes, layers, (against or {}).get(engine, "")) for engine in TARGETS]


def _verdict(engine: str, form: str, shapes: Mapping, layers: Mapping, against: str) -> Verdict:
    ways = [way for way in (*WAYS.get(engine, ()), *ALSO.get(engine, ())) if way.format == form]
    if form == "gguf" or not ways:
        takes = form == "gguf" and engine == "llama.cpp"
        return Verdict(engine, takes, RAN if takes else f"it does not read {form}")
    problems = {way: misfits(way, shapes, layers) for way in ways}
    way = min(problems, key=lambda one: (_others_method(problems[one]), len(problems[one]), ways.index(one)))
    reasons = sorted({why for found in problems[way].values() for why, _ in found})
    if not reasons:
        return Verdict(engine, not against, against or way.known)
    first = next(iter(problems[way]))
    return Verdict(engine, False, f"{len(problems[way])} of {len(layers)} layers, like {first}: {'; '.join(reasons)}")


def _others_method(found: Mapping[str, list]) -> bool:
    """Whether a way is for quite other levels: its reasons say less than those of a way that fits nearly."""
    return any("method" in fits for reasons in found.values() for _, fits in reasons)


def check_holds(form: str, layers: Mapping[str, QuantLinear], model: nn.Module) -> None:
    """Raise :class:`QtutorError` unless the format ``form`` holds all packed ``layers`` of ``model`` unchanged.

    It names the layers, each kind of reason, and the formats that would hold them.
    """
    settings = importlib.import_module(f"qtutor.formats.{FOREIGN[form]}").FORMAT.settings_for
    left = [name for name in linear_names(model) if name not in layers]
    try:
        settings(dict(layers), left)
        return
    except QtutorError as error:
        first = str(error)
    alone = {name: _refusal(form, {name: layer}, []) for name, layer in layers.items()}
    alone = {name: text for name, text in alone.items() if text}
    others = [other for other in FOREIGN if other != form and _refusal(other, dict(layers), left) is None]
    fits = f"Formats that hold all of them as they are: {', '.join([*others, 'qtutor'])}."
    count = f"{len(alone)} of {len(layers)} layers do not fit. " if len(alone) > 1 else ""
    raise QtutorError(f"{count}{next(iter(alone.values()), first)} {fits}")


def _refusal(form: str, layers: dict, left: list[str]) -> str | None:
    """The format's reason against ``layers``, or ``None``."""
    settings = importlib.import_module(f"qtutor.formats.{FOREIGN[form]}").FORMAT.settings_for
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            settings(layers, left)
    except QtutorError as error:
        return str(error)
    return None


def commands(out: str, form: str, model: nn.Module) -> dict[str, list[str]]:
    """The commands that start the engines that accept a ``model`` written to ``out``, by engine."""
    found = verdicts(form, packed_layers(model))
    return {
        one.engine: [STARTS[one.engine].format(shlex.quote(out))] for one in found if one.takes and one.engine in STARTS
    }
