"""Parts of the inputs of ``awq.search``: roundings, and parents. A parent computes an output with a layer's weights."""

import torch


def rounding(bits: int, group_size: int):
    """A function that rounds weights ``[out, in]`` to nearest; each group's largest weight is exactly a level.

    In the package, the largest weight is half a step beyond a level, where float32 and float64 would round differently.
    """

    def rounded(weight):
        grouped = weight.reshape(len(weight), -1, group_size)
        scale = grouped.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / (2 ** (bits - 1) - 1)
        return ((grouped / scale).round() * scale).reshape(weight.shape)

    return rounded


def steps_of(step: float):
    """A function that rounds to whole steps, the same for all rows. Its result shows whether a row was scaled."""

    def rounded(weight):
        return (weight / step).round() * step

    return rounded


def layer(x: torch.Tensor):
    """The layer alone as the parent: its inputs times its weights."""

    def output_of_the_layer(weight):
        return x.to(weight.dtype) @ weight.T

    return output_of_the_layer


def gated(x: torch.Tensor, damp: float = 1.0):
    """A parent that is not linear: half of the rows are a gate, and the gate multiplies the other half."""

    def output_of_the_parent(weight):
        gate, up = (x.to(weight.dtype) @ weight.T).chunk(2, dim=-1)
        return torch.sigmoid(damp * gate) * up

    return output_of_the_parent
