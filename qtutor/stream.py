"""A decoder block and the states that arrive at it: what its layers read, batch by batch, and what it hands on.

A pass runs no further than the layer it is about: for ``down_proj`` a whole block, for ``q_proj`` only a norm. And what
attention or the MLP have computed need not be computed again: once :meth:`Stream.keep` holds the input of ``o_proj``,
passes take its product with ``o_proj`` (as that is by now) in place of running attention, and likewise for
``down_proj`` and the MLP. So a method that rounds the layers in order runs each weight little more than once.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from qtutor.calibrate import BATCH
from qtutor.errors import QtutorError

# Layers that read the same tensor, in the order in which a block runs them.
SHARED = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
ADDED = ("self_attn.o_proj", "mlp.down_proj")  # the last of attention and MLP: their outputs join the residual stream
AFTER_ATTENTION = "post_attention_layernorm"  # reads the residual stream between attention and MLP


class _Reached(Exception):
    """Ends a pass at the layer it is about."""


@dataclass
class Stream:
    """A block and the states that arrive at it.

    name: ``"model.layers.3"``. module: the block, in float32. states: float32 ``[samples, length, hidden]``, its
    inputs. arguments: what the model passes to the block besides (positions, mask). kept: inputs of layers in
    :data:`ADDED`, float32 ``[samples, length, in]``, by the layer's name.
    """

    name: str
    module: nn.Module
    states: torch.Tensor
    arguments: dict
    kept: dict[str, torch.Tensor] = field(default_factory=dict)

    def batches(self) -> Iterator[slice]:
        """All samples, a few at a time."""
        for begin in range(0, len(self.states), BATCH):
            yield slice(begin, begin + BATCH)

    @torch.no_grad()
    def reach(self, layer: str, some: slice | torch.Tensor) -> torch.Tensor:
        """What ``layer`` reads in ``some`` of the samples, float32 ``[batch, length, in]``.

        Raises :class:`QtutorError` where that is NaN or infinite, naming the layer.
        """
        if layer in self.kept:
            return self.kept[layer][some]
        reached = []

        def stop(_module: nn.Module, arguments: tuple) -> None:
            reached.append(arguments[0])
            raise _Reached

        hook = self.module.get_submodule(layer).register_forward_pre_hook(stop)
        try:
            self.run(some)
        except _Reached:
            x = reached.pop()
        finally:
            hook.remove()
        check_finite(x, f"{self.name}.{layer}: its input")
        return x

    @torch.no_grad()
    def run(self, some: slice | torch.Tensor) -> torch.Tensor:
        """What the block hands on for ``some`` of the samples, float32 ``[batch, length, hidden]``."""
        with contextlib.ExitStack() as stack:
            for layer, x in self.kept.items():
                parent = self.module.get_submodule(layer.split(".")[0])
                last = self.module.get_submodule(layer)
                alone = layer == "mlp.down_proj"  # attention returns its weights, too

                def shortcut(*_args, last=last, x=x, alone=alone, **_more):
                    return last(x[some]) if alone else (last(x[some]), None)

                parent.forward = shortcut
                stack.callback(vars(parent).pop, "forward")
            return self.module(self.states[some], **self.arguments)

    def keep(self, layer: str) -> None:
        """Hold on to the input of ``layer`` (in :data:`ADDED`); nothing before the layer may be changed from now on."""
        if layer not in self.kept:
            found = None
            for some in self.batches():
                x = self.reach(layer, some)
                if found is None:
                    found = x.new_empty(*self.states.shape[:2], x.shape[-1])
                found[some] = x
            self.kept[layer] = found

    def residual(self, layer: str, some: slice | torch.Tensor) -> torch.Tensor:
        """The residual stream that the output of ``layer`` (in :data:`ADDED`) is added to."""
        return self.states[some] if layer.startswith("self_attn.") else self.reach(AFTER_ATTENTION, some)

    def advance(self) -> None:
        """Replace ``states`` by the outputs of ``module`` as it is now."""
        for some in self.batches():
            output = self.run(some)
            check_finite(output, f"{self.name}: its output")
            self.states[some] = output
        self.kept.clear()


def check_finite(x: torch.Tensor, what: str) -> None:
    """Raise :class:`QtutorError` where ``x [batch, length, channels]`` is NaN or infinite; ``what`` names it."""
    finite = torch.isfinite(x)
    if not finite.all():
        sample, token, channel = (~finite).nonzero()[0].tolist()
        raise QtutorError(
            f"{what} is {x[sample, token, channel].item()} (token {token} of a sample, channel {channel}), the first "
            "in the model that is not a finite number. Look for broken weights just before it."
        )
