"""The widgets of chapter 00: the same prompt at every precision, and the highest speed that memory allows."""

import copy
import functools
from collections.abc import Callable, Mapping

import ipywidgets
import torch

from qtutor import pipeline
from qtutor.course.widgets.explorer import Explorer, explore
from qtutor.measure import generation
from qtutor.plots import bars
from qtutor.plots.generation import texts_side_by_side, verdict
from qtutor.recipe import Recipe

PROMPTS = (
    'def mean(values):\n    """Return the mean of a list of numbers."""\n',
    "class Stack:\n    def __init__(self):\n",
    ">>> 37 + 48\n",
)


def same_prompt(
    model: torch.nn.Module,
    tokenizer,
    prompts: tuple[str, ...] = PROMPTS,
    *,
    bits: tuple[int, ...] = (16, 8, 4, 3, 2),
    group_size: int = 64,
    max_new_tokens: int = 64,
    frames: dict[str, list] | None = None,
) -> Explorer:
    """What ``model`` writes after the same prompt at several precisions (rounding to nearest), beside its float text.

    16 bits means the model itself. Every precision continues all prompts once, and the texts are kept, so a control
    only looks them up. Each precision quantizes a copy of the model, one at a time. frames: by default all prompts at
    all precisions.
    """

    @functools.cache
    def written(width: int) -> list[str]:
        writer = model
        if width != 16:
            writer = copy.deepcopy(model)
            pipeline.quantize(writer, Recipe(bits=width, group_size=group_size), progress=False)
        return generation.generate_batch(writer, tokenizer, list(prompts), max_new_tokens)

    def draw(prompt, bits):
        before, after = written(16)[prompt], written(bits)[prompt]
        verdicts = [verdict(prompts[prompt], text) for text in (before, after)]
        return texts_side_by_side(before, after, ("as it is", f"{bits} bits"), verdicts, len(prompts[prompt]))

    names = [(prompt.strip().splitlines()[0], i) for i, prompt in enumerate(prompts)]
    controls = {
        "prompt": ipywidgets.Dropdown(options=names, value=0, description="prompt"),
        "bits": ipywidgets.SelectionSlider(options=list(bits), value=4 if 4 in bits else bits[0], description="bits"),
    }
    everything = {"prompt": list(range(len(prompts))), "bits": list(bits)}
    return explore(draw, frames=everything if frames is None else frames, **controls)


def speed_limits(limits: Callable[[int, int], tuple[float, Mapping[str, float]]]) -> Explorer:
    """The most tokens a second that each machine can reach, for a number of billion weights and a number of bits.

    limits: (billions, bits) -> the gigabytes of the weights, and the tokens a second by machine.
    """

    def draw(billions: int, bits: int):
        gigabytes, speeds = limits(billions, bits)
        title = f"{billions} billion weights of {bits} bits: {gigabytes:.1f} GB"
        return bars(dict(speeds), title, "tokens a second at the very most", log=True), ""  # bars show their numbers

    def describe(billions: int, bits: int) -> str:
        gigabytes, speeds = limits(billions, bits)
        numbers = ", ".join(f"{speed:,.3g} on {name}" for name, speed in speeds.items())
        return (
            f"Bars on a logarithmic axis: the most tokens a second that memory allows for {billions} billion weights "
            f"of {bits} bits, {gigabytes:.1f} GB: {numbers}."
        )

    return explore(
        draw,
        frames={"billions": [1, 8, 70], "bits": [16, 8, 4, 2]},
        alt=describe,
        billions=ipywidgets.IntSlider(value=8, min=1, max=70, description="billions"),
        bits=ipywidgets.SelectionSlider(value=16, options=[16, 8, 4, 3, 2], description="bits"),
    )
