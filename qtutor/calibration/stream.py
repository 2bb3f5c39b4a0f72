"""A decoder block and the states that arrive at it: what its layers read, batch by batch, and what it hands on.

A block adds to the residual stream twice (:class:`~qtutor.families.Half`). A pass stops at the layer whose inputs are
wanted: for ``q_proj`` it runs only a norm, for ``down_proj`` nearly a whole block. Nothing needs to be computed twice:
:meth:`Stream.keep` holds the inputs of a half's last layer, and :meth:`Stream.pass_half` moves the states behind the
half. So a method that rounds the layers in order runs each weight little more than once.
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

SUMS = 64  # of channels, which tell how large a wide stream is
LEFT = 130_000_000  # bytes that may lie idle
PASS = 1024  # tokens that run at once: activations of so few stay in a CPU's cache, and more run no faster


@dataclass
class Stream:
    """A block and the states that arrive at it.

    name: ``"model.layers.3"``. module: the block, in float32. states: float32 ``[samples, length, hidden]``, the
    block's inputs, or the residual stream behind the halves that are ``passed``. arguments: what else the model passes
    to the block (positions, mask). wide: see :func:`~.precision.products`. kept: the last layer of the current half
    and its inputs ``[samples, length, in]``, in the dtype that the block makes them in, or ``None``.
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
        """By what the block multiplies what a half adds to the stream."""
        return 1.0 if self.family.multiplier is None else getattr(self.module, self.family.multiplier)

    def step(self, tokens: int | None = None) -> int:
        """How many samples hold about ``tokens`` tokens (:data:`PASS` if ``None``), at least one."""
        return max((tokens or PASS) // self.states.shape[1], 1)

    def batches(self, tokens: int | None = None) -> Iterator[slice]:
        """All samples, so many at a time as hold about ``tokens`` tokens."""
        step = self.step(tokens)
        for begin in range(0, len(self.states), step):  # few at a time: activations of all would not fit into memory
            yield slice(begin, begin + step)

    @torch.no_grad()
    def reach(self, layer: str, some: slice | torch.Tensor) -> torch.Tensor:
        """What ``layer`` reads in ``some`` of the samples, float32 ``[batch, length, in]``.

        Raises :class:`QtutorError` where that is NaN or infinite, naming the layer.
        """
        if self.kept is not None and self.kept[0] == layer:
            return self.kept[1][some].float()
        return self._reach(layer, some).float()

    def _reach(self, layer: str, some: slice | torch.Tensor) -> torch.Tensor:
        """:meth:`reach` in the dtype that the block makes it in."""
        residual = self.states[some]
        with products(residual.shape[-1], self.wide):
            for half in self.family.halves[self.passed :]:  # the states lie behind the halves before
                if layer in half.readers:
                    return self._read(half, residual)
                if layer == half.last:
                    return self._at_last(half, residual)
                residual = self._behind(half, residual, some)
        raise ValueError(f"{layer}: none of the layers that the states of {self.name} are still before")

    @torch.no_grad()
    def run(self, some: slice | torch.Tensor) -> torch.Tensor:
        """What the block hands on for ``some`` of the samples, float32 ``[batch, length, hidden]``."""
        residual = self.states[some]
        with products(residual.shape[-1], self.wide):
            for half in self.family.halves[self.passed :]:  # attention first: the MLP reads what it adds to the stream
                residual = self._behind(half, residual, some)
        return residual

    @torch.no_grad()
    def keep(self) -> None:
        """Keep the inputs of the current half's last layer. From now on, nothing before that layer may change."""
        trim_heap(LEFT)  # the last layer's Hessian is the largest: what work on the others has left goes first
        last = self.family.halves[self.passed].last
        found = None
        for some in self.batches():
            x = self._reach(last, some)
            if found is None:  # only the first batch tells how wide the layer is
                found = x.new_empty(*self.states.shape[:2], x.shape[-1])
            found[some] = x
        self.kept = last, found

    @torch.no_grad()
    def pass_half(self, behind: torch.Tensor | None = None) -> torch.Tensor | None:
        """Move the states behind the current half, as its layers are now; :meth:`reach` no longer finds these.

        behind: the states of a stream that is still before the half, and differs. Returns what the half's last layer
        would have to make there so that the two become equal, ``[samples, length, hidden]`` in the dtype of what it
        makes, or ``None`` without such states.
        """
        half, wanted = self.family.halves[self.passed], None
        for some in self.batches():  # in place: a second copy of all states would be the largest thing in memory
            residual = self.states[some]
            with products(residual.shape[-1], self.wide):
                made = self._made(half, residual, some)
                if behind is not None:
                    wanted = made.new_empty(self.states.shape) if wanted is None else wanted
                    wanted[some] = made + (residual - behind[some]) / self.multiplier
                self.states[some] = self._joined(half, residual, made)
        self.passed += 1
        return wanted

    def sizes(self, half: int) -> torch.Tensor:
        """Mean squares of the residual stream behind half number ``half`` as it is, ``[samples, length]``.

        Of a wide stream they are estimated, to 18 % or so, from :data:`SUMS` sums of its channels with random signs:
        the square of such a sum is on average the sum of the squares (Johnson & Lindenstrauss 1984). So the half's last
        layer makes as many outputs in place of all.
        """
        ahead = self.family.halves[self.passed : half + 1]  # none where the states lie behind it by now
        steps = [partial(self._behind, one) for one in ahead[:-1]] + [self._measured(one) for one in ahead[-1:]]
        squares = []
        for some in self.batches():
            residual = self.states[some]
            with products(self.states.shape[-1], self.wide), torch.no_grad():
                for step in steps:  # a look ahead: the states stay where they are
                    residual = step(residual, some)
            squares.append(residual.float().square().sum(-1) / self.states.shape[-1])
        return torch.cat(squares)

    def _measured(self, half: Half) -> Callable[[torch.Tensor, slice | torch.Tensor], torch.Tensor]:
        """:meth:`_behind` of ``half``, or what has the same squares: sums of its channels, where the stream is wide."""
        hidden, layer = self.states.shape[-1], self.module.get_submodule(half.last)
        if hidden < 8 * SUMS or half.after is not None:  # a norm behind the half needs all channels
            return partial(self._behind, half)
        signs = random_signs(hidden, self.states.device)
        with torch.no_grad():
            weight = self.multiplier * signs @ layer.weight
            bias = None if layer.bias is None else self.multiplier * signs @ layer.bias
        return lambda residual, some: (
            residual @ signs.T + nn.functional.linear(self._arriving(half, residual, some), weight, bias)
        )

    def advance(self) -> None:
        """Replace ``states`` by the outputs of ``module`` as it is now: those that arrive at the next block."""
        while self.passed < len(self.family.halves):  # a method that stopped early leaves halves to run
            self.pass_half()
        for some in self.batches():  # here, so that the message names the block that made the NaN
            check_finite(self.states[some], f"{self.name}: its output")
        self.passed, self.kept = 0, None

    def _read(self, half: Half, residual: torch.Tensor) -> torch.Tensor:
        """What the readers of ``half`` read of the stream, checked."""
        x = residual if half.norm is None else self.module.get_submodule(half.norm)(residual)
        check_finite(x, f"{self.name}.{half.readers[0]}: its input")
        return x

    def _at_last(self, half: Half, residual: torch.Tensor) -> torch.Tensor:
        """What the parent of ``half`` (attention, MLP) gives its last layer, checked."""
        x = self._read(half, residual)
        parent, last = self.module.get_submodule(half.parent), self.module.get_submodule(half.last)
        own = vars(last).get("forward")  # accelerate puts one of its own into a module
        last.forward = lambda given: given  # so that the parent returns what it would multiply with the last weights
        try:
            # Attention wants positions and a mask, and returns its weights besides.
            x = parent(x, **self.arguments)[0] if half is self.family.halves[0] else parent(x)
        finally:
            del last.forward
            if own is not None:
                last.forward = own
        check_finite(x, f"{self.name}.{half.last}: its input")
        return x

    def _behind(self, half: Half, residual: torch.Tensor, some: slice | torch.Tensor) -> torch.Tensor:
        """The residual stream with what ``half`` adds to it."""
        return self._joined(half, residual, self._made(half, residual, some))

    def _made(self, half: Half, residual: torch.Tensor, some: slice | torch.Tensor) -> torch.Tensor:
        """What the last layer of ``half`` makes."""
        return self.module.get_submodule(half.last)(self._arriving(half, residual, some))

    def _joined(self, half: Half, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The residual stream with ``x`` added, which the last layer of ``half`` has made."""
        if half.after is not None:
            x = self.module.get_submodule(half.after)(x)
        return residual + x if self.family.multiplier is None else residual + x * self.multiplier

    def _arriving(self, half: Half, residual: torch.Tensor, some: slice | torch.Tensor) -> torch.Tensor:
        """What the last layer of ``half`` reads, kept or made again."""
        held = self.kept is not None and self.kept[0] == half.last
        return self.kept[1][some] if held else self._at_last(half, residual)


def random_signs(width: int, device: torch.device) -> torch.Tensor:
    """:data:`SUMS` rows of random signs, float32 ``[SUMS, width]``, so small that ``|signs @ v|`` is about ``|v|``."""
    generator = torch.Generator().manual_seed(0)  # on every device the same
    signs = torch.randint(0, 2, (SUMS, width), generator=generator) * 2 - 1
    return (signs / SUMS**0.5).to(device)


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
