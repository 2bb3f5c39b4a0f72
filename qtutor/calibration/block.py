"""A block with the calibration states that arrive at it: the inputs of its layers, and the sums that methods need."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from qtutor.calibration.moments import Factor, Gram, Moments
from qtutor.calibration.precision import product_dtype, rounds
from qtutor.calibration.statistics import InputStatistics, RunningStatistics
from qtutor.calibration.stream import Stream

TOGETHER = 2048  # tokens whose products are summed in float32 before they are added to the float64 sum


@dataclass
class CalibratedBlock(Stream):
    """A decoder block and the calibration states that arrive at it.

    module: a float32 copy that methods may change. dtype: the dtype of the block in the model. twin: the block and its
    inputs in the float decoder, or ``None``. token_weights: whether tokens count by :meth:`weights`. wanted: see
    :meth:`readings`.
    """

    dtype: torch.dtype = field(kw_only=True)
    twin: Stream | None = None
    token_weights: bool = field(kw_only=True)
    wanted: torch.Tensor | None = None
    _sizes: dict[int, torch.Tensor] = field(default_factory=dict)

    def readings(self, ahead: bool = False) -> Iterator["Reading"]:
        """The layers of the block in the order in which it runs them; layers with the same input come together.

        When the caller gets the next reading, the states move on through the layers of the last one, with their current
        weights. ahead: move the states before the caller gets a half's last layer. This is for changes that keep the
        block's output, but change the input of the last layer (AWQ's scales).

        The twin is always ahead at a half's last layer. ``wanted``, ``[samples, length, hidden]``, is then the output
        of this layer that would make the stream after it equal to the twin's.
        """
        for half in self.family.halves:
            yield Reading(self, half.readers)
            if self.twin is not None:
                self.wanted = self.twin.pass_half(before=self.states)
            self.keep()  # the readers are final now, so the input of the last layer is final, too
            if ahead:
                self.pass_half()
            yield Reading(self, (half.last,))
            if not ahead:
                self.pass_half()
            self.kept = self.wanted = None  # the widest activations of the half are no longer needed

    def sample(self, tokens: int) -> "CalibratedBlock":
        """The same block with its own copy of some states: samples with about this many tokens; without a twin."""
        return replace(self, states=self.states[self.chosen(tokens)], twin=None, kept=None, wanted=None, _sizes={})

    def chosen(self, tokens: int | None = None) -> torch.Tensor:
        """The indices of samples with about this many tokens, int64; always the same ones, in order."""
        samples, length, _ = self.states.shape
        wanted = samples if tokens is None else min(max(tokens // length, 1), samples)
        # At random: every eighth sample, for instance, may be of a special kind.
        return torch.randperm(samples, generator=torch.Generator().manual_seed(0))[:wanted].sort().values

    def inputs(self, layer: str, tokens: int | None = None) -> Iterator[torch.Tensor]:
        """The inputs of ``layer`` (``"mlp.up_proj"``), batch by batch, float32 ``[batch, length, in]``.

        tokens: about this many are enough. Samples are chosen at random and stay whole.
        Raises :class:`QtutorError` for NaN or infinite inputs, and names the layer.
        """
        for some in self.chosen(tokens).split(self.step()):  # few at a time, as in Stream.batches
            yield self.reach(layer, some)

    def weighted_inputs(self, layer: str, tokens: int | None = None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """:meth:`inputs`, each batch with its tokens' :meth:`weights` ``[batch, length, 1]``."""
        weights = self.weights(layer)
        if weights is None:
            weights = torch.ones(self.states.shape[:2], device=self.states.device)
        yield from zip(self.inputs(layer, tokens), weights[self.chosen(tokens)].unsqueeze(-1).split(self.step()))

    def hessian(self, layer: str, weighted: bool = False, tokens: int | None = None) -> torch.Tensor:
        """X^T X, float64 ``[in, in]``: products of a batch as in :class:`Gram`, summed in float64.

        weighted: each token counts by :meth:`weights`. tokens: about this many, as in :meth:`inputs`; all if ``None``.
        """
        gram, roots = self.gram(), self.roots(layer) if weighted else None
        # Larger batches than elsewhere: every sum in float64 walks through the whole matrix.
        for some in self.chosen(tokens).split(self.step(TOGETHER)):
            x = Factor(_times(self.reach(layer, some), roots, some))
            gram.add(x, x)
        return gram.result()

    @property
    def product_dtype(self) -> torch.dtype:
        """The dtype for products that methods only use to compare several choices."""
        on_cpu = self.states.device.type == "cpu"
        return product_dtype(self.states.shape[-1], self.wide) if on_cpu else torch.float32

    def gram(self, symmetric: bool = True) -> Gram:
        """A sum of products of this block's inputs, as exact as its own products have to be."""
        return Gram(symmetric, rounded=rounds(self.states.shape[-1], self.wide))

    def statistics(self, layer: str, tokens: int | None = None) -> InputStatistics:
        """Mean and largest |x| and mean square, per input channel of ``layer``; tokens: as in :meth:`inputs`."""
        running = None
        for x in self.inputs(layer, tokens):  # only sums are kept, so memory does not grow with the text
            running = running or RunningStatistics(x.shape[-1], device=x.device)
            running.add(x)
        return running.result()

    def weights(self, layer: str) -> torch.Tensor | None:
        """How much an error in ``layer``'s output counts for each token, float32 ``[samples, length]``, 1 on average.

        Attention and MLP add to the residual stream, and every reader of the stream first divides it by its size
        (RMSNorm). So if a token's stream is ten times as large, an error there does a tenth of the harm, and the
        squared error a hundredth. If all squares counted the same, a few tokens with large activations would decide
        alone; if this one counted a hundredth, the tokens with the smallest streams would. So it counts a tenth here:
        the weight is 1 divided by the size of the stream (the root of its mean square). On SmolLM2 (three draws of
        8,192 tokens, 4 bits), GPTQ's KL was 0.096 with equal weights, 0.097 with this weight and 0.103 with its square.
        On the embedded decoder, the last two were equally good, and equal weights were 4 % worse.

        The size is that of the stream after attention, or, for ``down_proj``, after the MLP. q, k and v add nothing to
        the stream: for them the result is ``None``, and all tokens count the same.
        """
        attention, mlp = self.family.halves
        if not self.token_weights or layer in attention.readers:
            return None
        half = 1 if layer == mlp.last else 0
        if half not in self._sizes:
            self._sizes[half] = (self.twin or self).sizes(half)
        inverse = self._sizes[half].clamp(min=1e-30).rsqrt()
        return inverse / inverse.mean()

    def roots(self, layer: str) -> torch.Tensor | None:
        """Square roots of :meth:`weights`: if two inputs are multiplied by them, a token counts by its weight in their
        product."""
        weights = self.weights(layer)
        return None if weights is None else weights.sqrt()

    @property
    def tokens(self) -> int:
        return self.states.shape[0] * self.states.shape[1]

    def advance(self) -> None:
        """Replace ``states`` by the outputs of the current ``module``, and also the twin's states."""
        super().advance()
        if self.twin is not None:
            self.twin.advance()


@dataclass(frozen=True)
class Reading:
    """Layers of a block that read the same tensor, at the time when the walk reaches them.

    names: the layers' names in the block, ``("mlp.gate_proj", "mlp.up_proj")``.
    """

    block: CalibratedBlock
    names: tuple[str, ...]

    @property
    def layers(self) -> list[nn.Linear]:
        """The layers of the block's float32 copy, whose weights may be changed."""
        return [self.block.module.get_submodule(name) for name in self.names]

    @property
    def full_names(self) -> list[str]:
        """The names in the model: ``"model.layers.3.mlp.gate_proj"``."""
        return [f"{self.block.name}.{name}" for name in self.names]

    @torch.no_grad()
    def moments(self) -> Moments:
        """Sums over all tokens, each by its weight: X^T X and, with a twin, the drift of inputs or the target."""
        block, layer = self.block, self.names[0]
        twin, roots = block.twin, block.roots(layer)
        hessian, drift, target = block.gram(), block.gram(symmetric=False), block.gram(symmetric=False)
        for some in block.batches(TOGETHER):  # one pass for both sums: computing x costs more than multiplying it
            x = block.reach(layer, some)
            weighted = Factor(_times(x, roots, some))
            hessian.add(weighted, weighted)
            if block.wanted is not None:
                made = block.wanted[some].float()
                if self.layers[0].bias is not None:
                    made -= self.layers[0].bias
                target.add(Factor(_times(made, roots, some)), weighted)
            elif twin is not None:
                drift.add(Factor(_times(twin.reach(layer, some) - x, roots, some)), weighted)
        return Moments(hessian.result(), drift.result(), target.result())


def _times(x: torch.Tensor, roots: torch.Tensor | None, some: slice | torch.Tensor) -> torch.Tensor:
    """``x``, the inputs in ``some`` of the samples, each token times its root; ``None``: all tokens count the same."""
    return x if roots is None else x * roots[some].unsqueeze(-1)
