"""A decoder block and the states that arrive at it: what its layers read, batch by batch, and what it hands on.

A block adds two things to the residual stream, one after the other: what attention makes of the normed stream, and what
the MLP does. A pass runs no further than the layer it is about: for ``down_proj`` nearly a whole block, for ``q_proj``
only a norm. And nothing needs to be computed twice: :meth:`Stream.keep` holds on to the input of ``o_proj`` (or
``down_proj``), and once a method is done with attention, :meth:`Stream.attend` moves the states behind it. So a method
that rounds the layers in order runs each weight little more than once.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from qtutor.calibration.precision import products
from qtutor.errors import QtutorError

# Layers that read the same tensor, in the order in which a block runs them.
SHARED = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
ADDED = ("self_attn.o_proj", "mlp.down_proj")  # the last of attention and MLP: their outputs join the residual stream
# The two halves of a block: the norm that reads the stream, the layers that read the norm, and the last layer.
HALVES = (("input_layernorm", SHARED[0], ADDED[0]), ("post_attention_layernorm", SHARED[2], ADDED[1]))
PASS = 1024  # tokens that run at once: activations of so few stay in a CPU's cache, and more run no faster


@dataclass
class Stream:
    """A block and the states that arrive at it.

    name: ``"model.layers.3"``. module: the block, in float32. states: float32 ``[samples, length, hidden]``, its
    inputs, or after :meth:`attend` the residual stream behind attention. arguments: what the model passes to the block
    besides (positions, mask). kept: inputs of layers in :data:`ADDED`, float32 ``[samples, length, in]``, by the
    layer's name. attended: whether the states are behind attention.
    """

    name: str
    module: nn.Module
    states: torch.Tensor
    arguments: dict
    kept: dict[str, torch.Tensor] = field(default_factory=dict)
    attended: bool = False

    def step(self, tokens: int | None = None) -> int:
        """How many samples hold about ``tokens`` tokens (:data:`PASS` if ``None``), at least one."""
        return max((tokens or PASS) // self.states.shape[1], 1)

    def batches(self, tokens: int | None = None) -> Iterator[slice]:
        """All samples, so many at a time as hold about ``tokens`` tokens."""
        step = self.step(tokens)
        for begin in range(0, len(self.states), step):
            yield slice(begin, begin + step)

    @torch.no_grad()
    def reach(self, layer: str, some: slice | torch.Tensor) -> torch.Tensor:
        """What ``layer`` reads in ``some`` of the samples, float32 ``[batch, length, in]``.

        Raises :class:`QtutorError` where that is NaN or infinite, naming the layer.
        """
        return self.kept[layer][some] if layer in self.kept else self._pass(some, layer)

    @torch.no_grad()
    def run(self, some: slice | torch.Tensor) -> torch.Tensor:
        """What the block hands on for ``some`` of the samples, float32 ``[batch, length, hidden]``."""
        return self._pass(some)

    def come_to(self, layer: str) -> None:
        """Move on to ``layer``, in the order of :data:`SHARED`: nothing before it may be changed from now on."""
        if layer.startswith("mlp."):
            self.attend()
        if layer in ADDED:
            self.keep(layer)

    def keep(self, layer: str) -> None:
        """Hold on to the input of ``layer`` (in :data:`ADDED`)."""
        if layer not in self.kept:
            width = self.module.get_submodule(layer).weight.shape[1]
            found = self.states.new_empty(*self.states.shape[:2], width)
            for some in self.batches():
                found[some] = self.reach(layer, some)
            self.kept[layer] = found

    def sizes(self, layer: str) -> torch.Tensor:
        """Mean squares of the residual stream behind ``layer`` (in :data:`ADDED`) as it is, ``[samples, length]``."""
        behind = self._behind_attention if layer == ADDED[0] else self.run
        return torch.cat([behind(some).square().mean(-1) for some in self.batches()])

    def attend(self) -> None:
        """Move the states behind attention, as its layers are now; they can no longer be asked for."""
        if not self.attended:
            for some in self.batches():
                self.states[some] = self._behind_attention(some)
            self.kept.clear()
            self.attended = True

    def advance(self) -> None:
        """Replace ``states`` by the outputs of ``module`` as it is now."""
        for some in self.batches():
            output = self.run(some)
            check_finite(output, f"{self.name}: its output")
            self.states[some] = output
        self.kept.clear()
        self.attended = False

    def _pass(self, some: slice | torch.Tensor, layer: str | None = None) -> torch.Tensor:
        """What ``layer`` reads, checked; without one, what the block hands on."""
        residual = self.states[some]
        with products(residual.shape[-1]):
            for norm, first, last in HALVES[self.attended :]:
                if layer in first or last not in self.kept:
                    x = self.module.get_submodule(norm)(residual)
                    if layer is not None:
                        check_finite(x, f"{self.name}.{layer if layer in first else first[0]}: its input")
                    if layer in first:
                        return x
                    x = self._inside(last, x)
                else:
                    x = self.kept[last][some]
                if layer == last:
                    check_finite(x, f"{self.name}.{layer}: its input")
                    return x
                residual = residual + self.module.get_submodule(last)(x)
        if layer is not None:
            raise ValueError(f"{layer}: none of the layers that the states of {self.name} are still before")
        return residual

    @torch.no_grad()
    def _behind_attention(self, some: slice) -> torch.Tensor:
        """The residual stream between attention and MLP."""
        residual = self.states[some]
        if self.attended:
            return residual
        with products(residual.shape[-1]):
            return residual + self.module.get_submodule(ADDED[0])(self.reach(ADDED[0], some))

    def _inside(self, last: str, x: torch.Tensor) -> torch.Tensor:
        """What ``last`` is given by its parent (attention, MLP) that reads ``x``."""
        name = last.split(".")[0]
        parent, layer = self.module.get_submodule(name), self.module.get_submodule(last)
        layer.forward = lambda given: given  # so that the parent returns what it would multiply with the last weights
        try:
            return parent(x, **self.arguments)[0] if name == "self_attn" else parent(x)
        finally:
            del layer.forward


def check_finite(x: torch.Tensor, what: str) -> None:
    """Raise :class:`QtutorError` where ``x [batch, length, channels]`` is NaN or infinite; ``what`` names it."""
    if torch.isfinite(x.sum()):  # one pass over x; only a sum that is not finite asks for a closer look
        return
    finite = torch.isfinite(x)
    if not finite.all():
        sample, token, channel = (~finite).nonzero()[0].tolist()
        raise QtutorError(
            f"{what} is {x[sample, token, channel].item()} (token {token} of a sample, channel {channel}), the first "
            "in the model that is not a finite number. Look for broken weights just before it."
        )
