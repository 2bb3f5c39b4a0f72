"""Whole decoders: the time for the first token and for each further one; and a test of inputs of eight bits."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

import qtutor
from qtutor.course.ladder.timing import clock
from qtutor.measure.speed import bytes_of_a_token, token_times
from qtutor.recipe import Recipe
from qtutor.runtime.linear import QuantLinear

STEPS = 8


@dataclass(frozen=True)
class Pace:
    """first: seconds until the prompt is read and the first token is known. each: seconds for each further token."""

    first: float
    each: float

    @property
    def rate(self) -> float:
        """Tokens a second, after the first."""
        return 1 / self.each


def paces(models: Mapping[str, torch.nn.Module], prompt: int = 128, steps: int = STEPS, rounds: int = 3) -> dict:
    """The :class:`Pace` of each model after a prompt of ``prompt`` tokens. Models take turns; the shortest runs count.

    Before that, every model reads the prompt once, so that its kernels are prepared.
    """
    firsts: dict[str, list[float]] = {name: [] for name in models}
    others: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds + 1):
        for name, model in models.items():
            ids = torch.zeros(1, prompt, dtype=torch.int64, device=model.device)
            first, each = token_times(model, ids, steps if turn else 1, clock(model.device.type))
            if turn:
                firsts[name].append(first)
                others[name] += each
    return {name: Pace(min(firsts[name]), min(others[name])) for name in models}


def quantized(model, recipes: Mapping[str, Recipe | None], calibration=None) -> dict[str, torch.nn.Module]:
    """A copy of ``model`` for each recipe, and the model itself for ``None``."""
    made = {}
    for name, recipe in recipes.items():
        made[name] = model if recipe is None else copy.deepcopy(model)
        if recipe is not None:
            qtutor.quantize(made[name], recipe, calibration, progress=False)
    return made


def pace_rows(models: Mapping[str, torch.nn.Module], found: Mapping[str, Pace]) -> list[list[str]]:
    """Rows of a table: bytes a token, tokens a second, gigabytes a second."""
    rows = []
    for name, model in models.items():
        size, pace = bytes_of_a_token(model), found[name]
        rows.append([name, f"{size / 1e6:.2f}", f"{pace.rate:.1f}", f"{size * pace.rate / 1e9:.2f}"])
    return rows


@contextmanager
def rounded_inputs(model, group_size: int | None = 64) -> Iterator[None]:
    """Within a ``with`` block, inputs of packed layers are rounded to eight bits, with the losses of an int8 kernel.

    The codes are symmetric, from -127 to 127. There is one step for each ``group_size`` neighbouring inputs of a token,
    or with ``None`` one for the whole token. An int8 kernel multiplies these codes as whole numbers, which adds no
    error.
    """

    def hook(layer, arguments):
        return (rounded(arguments[0], group_size),)

    hooks = [layer.register_forward_pre_hook(hook) for layer in model.modules() if isinstance(layer, QuantLinear)]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()


def rounded(x: torch.Tensor, group_size: int | None) -> torch.Tensor:
    """x ``[..., columns]``, rounded to codes of eight bits times a step for each group."""
    cut = x.unsqueeze(-2) if group_size is None else x.unflatten(-1, (-1, group_size))
    step = (cut.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-30)
    return ((cut / step).round() * step).reshape(x.shape)
