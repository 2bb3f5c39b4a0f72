"""A decoder block and the states that arrive at it: the inputs of its layers, batch by batch, and the block's outputs.

A block adds to the residual stream twice (:class:`~qtutor.families.Half`). A pass stops at the layer whose inputs are
requested: for ``q_proj`` it runs only a norm, for ``down_proj`` nearly a whole block. Nothing needs to be computed
twice: :meth:`Stream.keep` holds the inputs of a half's last layer, and :meth:`Stream.pass_half` moves the states past
the half. So a method that rounds the layers in order uses each weight little more than once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from qtutor.calibration.mapped import trim_heap
from qtutor.calibration.precision import WIDE, products
from qtutor.errors import QtutorError
from qtutor.families import Family, Half

SUMS = 64  # sums of channels, from which the size of a wide stream is estimated
LEFT = 130_000_000  # bytes that may stay unused
PASS = 1024  # tokens that run at once: their activations stay in a CPU's cache, and more are no faster


@dataclass
class Stream:
    """A block and the states that arrive at it.

    name: ``"model.layers.3"``. module: the block, in float32. states: float32 ``[samples, length, hidden]``, the
    block's inputs, or the residual stream after the first ``passed`` halves. arguments: the other arguments that the
    model passes to the block (positions, mask). wide: see :func:`~.precision.products`. kept: the last layer of the
    current half and its inputs ``[samples, length, in]``, in the dtype in which the block computes them, or ``None``.
    """

    name: str
    module: nn.Module
    states: torch.Tensor
    arguments: dict
    family: Family
    wide: int | None = WIDE
    passed: int = 0
    kept: tuple[str, torch.Tensor] | None = None

    @property
    def multiplier(self) -> float:
        """The factor by which the block multiplies a half's output before it is added to the stream."""
        return 1.0 if self.family.multiplier is None else getattr(self.module, self.family.multiplier)

    def step(self, tokens: int | None = None) -> int:
        """How many samples hold about ``tokens`` tokens (:data:`PASS` if ``None``), at least one."""
        return max((tokens or PASS) // self.states.shape[1], 1)

    def batches(self, tokens: int | None = None) -> Iterator[slice]:
        """All samples, in batches of about ``tokens`` tokens."""
        step = self.step(tokens)
        for begin in range(0, len(self.states), step):  # few at a time: activations of all would not fit into memory
            yield slice(begin, begin + step)

    @torch.no_grad()
    def reach(self, layer: str, some: slice | torch.Tensor) -> torch.Tensor:
        """The inputs of ``layer`` for ``some`` of the samples, float32 ``[batch, length, in]``.

        Raises :class:`QtutorError` if they are NaN or infinite, and names the layer.
        """
        if self.kept is not None and self.kept[0] == layer:
            return self.kept[1][some].float()
        return self._reach(layer, some).float()

    def _reach(self, layer: str, some: slice | torch.Tensor) -> torch.Tensor:
        """:meth:`reach` in the dtype in which the block computes the inputs."""
        residual = self.states[some]
        with products(residual.shape[-1], self.wide):
            for half in self.family.halves[self.passed :]:  # the states are already after the earlier halves
                if layer in half.readers:
                    return self._read(half, residual)
                if layer == half.last:
                    return self._at_last(half, residual)
                residual = self._after(half, residual, some)
        raise ValueError(f"{layer}: the states of {self.name} are already past it, or the block has no such layer")

    @torch.no_grad()
    def run(self, some: slice | torch.Tensor) -> torch.Tensor:
        """The output of the block for ``some`` of the samples, float32 ``[batch, length, hidden]``."""
        residual = self.states[some]
        with products(residual.shape[-1], self.wide):
            for half in self.family.halves[self.passed :]:  # attention first: the MLP reads what it adds to the stream
                residual = self._after(half, residual, some)
        return residual

    @torch.no_grad()
    def keep(self) -> None:
        """Keep the inputs of the current half's last layer. From now on, nothing before that layer may change."""
        trim_heap(LEFT)  # the last layer's Hessian is the largest: free the memory of earlier work first
        last = self.family.halves[self.passed].last
        found = None
        for some in self.batches():
            x = self._reach(last, some)
            if found is None:  # the first batch shows how wide the layer is
                found = x.new_empty(*self.states.shape[:2], x.shape[-1])
            found[some] = x
        self.kept = last, found

    @torch.no_grad()
    def pass_half(self, before: torch.Tensor | None = None) -> torch.Tensor | None:
        """Move the states past the current half, with its current weights; :meth:`reach` no longer finds its layers.

        before: the states of another stream, which is still before the half. Returns the output of the half's last
        layer that the other stream would need so that both become equal, ``[samples, length, hidden]`` in the dtype of
        this layer's output, or ``None`` without such states.
        """
        half, wanted = self.family.halves[self.passed], None
        for some in self.batches():  # in place: a second copy of all states would be the largest thing in memory
            residual = self.states[some]
            with products(residual.shape[-1], self.wide):
                made = self._made(half, residual, some)
                if before is not None:
                    wanted = made.new_empty(self.states.shape) if wanted is None else wanted
                    wanted[some] = made + (residual - before[some]) / self.multiplier
                self.states[some] = self._joined(half, residual, made)
        self.passed += 1
        return wanted

    def sizes(self, half: int) -> torch.Tensor:
        """Mean squares of the residual stream after half number ``half`` as it is now, ``[samples, length]``.

        For a wide stream, they are estimated, to 18 % or so, from :data:`SUMS` sums of its channels with random signs:
        the square of such a sum is on average the sum of the squares (Johnson & Lindenstrauss 1984). So the half's last
        layer computes only this many outputs.
        """
        ahead = self.family.halves[self.passed : half + 1]  # none if the states are already after it
        steps = [partial(self._after, one) for one in ahead[:-1]] + [self._measured(one) for one in ahead[-1:]]
        squares = []
        for some in self.batches():
            residual = self.states[some]
            with products(self.states.shape[-1], self.wide), torch.no_grad():
                for step in steps:  # only a look ahead: the states stay unchanged
                    residual = step(residual, some)
            squares.append(residual.float().square().sum(-1) / self.states.shape[-1])
        return torch.cat(squares)

    def _measured(self, half: Half) -> Callable[[torch.Tensor, slice | torch.Tensor], torch.Tensor]:
        """:meth:`_after` of ``half``, or for a wide stream sums of its channels, which have about the same squares."""
        hidden, layer = self.states.shape[-1], self.module.get_submodule(half.last)
        if hidden < 8 * SUMS or half.after is not None:  # a norm after the half needs all channels
            return partial(self._after, half)
        signs = random_signs(hidden, self.states.device)
        weight = self.multiplier * signs @ layer.weight
        bias = None if layer.bias is None else self.multiplier * signs @ layer.bias
        return lambda residual, some: (
            residual @ signs.T + nn.functional.linear(self._arriving(half, residual, some), weight, bias)
        )

    def advance(self) -> None:
        """Replace ``states`` by the outputs of the current ``module``: these arrive at the next block."""
        while self.passed < len(self.family.halves):  # after a method that stopped early, some halves are still to run
            self.pass_half()
        for some in self.batches():  # here, so that the message names the block that computed the NaN
            check_finite(self.states[some], f"{self.name}: its output")
        self.passed, self.kept = 0, None

    def _read(self, half: Half, residual: torch.Tensor) -> torch.Tensor:
        """The inputs of the readers of ``half``, checked."""
        x = residual if half.norm is None else self.module.get_submodule(half.norm)(residual)
        check_finite(x, f"{self.name}.{half.readers[0]}: its input")
        return x

    def _at_last(self, half: Half, residual: torch.Tensor) -> torch.Tensor:
        """The inputs of the last layer of ``half``, from its parent (attention, MLP), checked."""
        x = self._read(half, residual)
        parent, last = self.module.get_submodule(half.parent), self.module.get_submodule(half.last)
        own = vars(last).get("forward")  # accelerate puts one of its own into a module
        last.forward = lambda given: given  # so that the parent returns the input of its last layer
        try:
            # Attention needs positions and a mask, and also returns its weights.
            x = parent(x, **self.arguments)[0] if half is self.family.halves[0] else parent(x)
        finally:
            del last.forward
            if own is not None:
                last.forward = own
        check_finite(x, f"{self.name}.{half.last}: its input")
        return x

    def _after(self, half: Half, residual: torch.Tensor, some: slice | torch.Tensor) -> torch.Tensor:
        """The residual stream after ``half``."""
        return self._joined(half, residual, self._made(half, residual, some))

    def _made(self, half: Half, residual: torch.Tensor, some: slice | torch.Tensor) -> torch.Tensor:
        """The output of the last layer of ``half``."""
        return self.module.get_submodule(half.last)(self._arriving(half, residual, some))

    def _joined(self, half: Half, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The residual stream plus ``x``, the output of the last layer of ``half``."""
        if half.after is not None:
            x = self.module.get_submodule(half.after)(x)
        return residual + x if self.family.multiplier is None else residual + x * self.multiplier

    def _arriving(self, half: Half, residual: torch.Tensor, some: slice | torch.Tensor) -> torch.Tensor:
        """The inputs of the last layer of ``half``, kept or computed again."""
        held = self.kept is not None and self.kept[0] == half.last
        return self.kept[1][some] if held else self._at_last(half, residual)


def random_signs(width: int, device: torch.device) -> torch.Tensor:
    """:data:`SUMS` rows of random signs, float32 ``[SUMS, width]``, scaled so that ``|signs @ v|`` is about ``|v|``."""
    generator = torch.Generator().manual_seed(0)  # the same on every device
    signs = torch.randint(0, 2, (SUMS, width), generator=generator) * 2 - 1
    return (signs / SUMS**0.5).to(device)


def check_finite(x: torch.Tensor, what: str) -> None:
    """Raise :class:`QtutorError` if ``x [batch, length, channels]`` is NaN or infinite; ``what`` names it."""
    if torch.isfinite(x.sum()):  # one pass over x; only a sum that is not finite needs a closer look
        return
    finite = torch.isfinite(x)
    if not finite.all():
        sample, token, channel = (~finite).nonzero()[0].tolist()
        raise QtutorError(
            f"{what} is {x[sample, token, channel].item()} (token {token} of a sample, channel {channel}), the first "
            "in the model that is not a finite number. Look for broken weights just before it."
        )
