"""One decoder block at a time: what its layers read, and what it hands to the next, quantized or not.

:func:`walk` carries the calibration text through the decoder as hidden states. Each block comes as a float32 copy that
a method may change as it likes; the model itself is only read. Layers that share an input (q, k, v; gate, up) are
served together.

With ``twin`` the float decoder is carried along: each block comes a second time as it was, with the states that would
have arrived had nothing been rounded, so that a method can see what earlier layers did to its inputs
(:mod:`qtutor.methods.propagation`).

Memory beyond the model: hidden states (float32, ``samples * length * hidden``), one block in float32, the inputs of its
o_proj or down_proj (``samples * length * (hidden or intermediate)``), one batch of activations, and the moments
(float64, the square of the layer's width) while a method holds them; with ``twin`` all of that twice. No block but the
one at hand is touched, so blocks may as well come from disk; of a model that is mapped from its files, only that block
is in memory.

Left out: encoders, padding (all samples have one length), and decoders that mix other things into their blocks.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from qtutor.calibration.mapped import page_out
from qtutor.calibration.moments import Gram, Moments
from qtutor.calibration.statistics import InputStatistics, RunningStatistics, check_token_ids
from qtutor.calibration.stream import ADDED, SHARED, Stream, check_finite
from qtutor.errors import QtutorError
from qtutor.families import decoder_blocks

TOGETHER = 2048  # tokens whose products are summed in float32 before they join the sum in float64


@dataclass
class CalibratedBlock(Stream):
    """A decoder block and the calibration states that arrive at it.

    module: the float32 copy, free to be changed. dtype: what the model stores the block in. twin: the block and its
    inputs as they are in the float decoder, or ``None``.
    """

    dtype: torch.dtype = torch.float32
    twin: Stream | None = None
    advanced: int = 0
    _sizes: dict[str, torch.Tensor] = field(default_factory=dict)

    def chosen(self, tokens: int | None = None) -> torch.Tensor:
        """Which samples hold about so many tokens, int64; always the same ones, in order."""
        samples, length, _ = self.states.shape
        wanted = samples if tokens is None else min(max(tokens // length, 1), samples)
        # At random: every eighth sample may be of a kind of its own.
        return torch.randperm(samples, generator=torch.Generator().manual_seed(0))[:wanted].sort().values

    def inputs(self, layer: str, tokens: int | None = None) -> Iterator[torch.Tensor]:
        """The inputs of ``layer`` (``"mlp.up_proj"``), batch by batch, float32 ``[batch, length, in]``.

        tokens: about so many are enough; whole samples are taken, at random.
        Raises :class:`QtutorError` for NaN or infinite ones, naming the layer.
        """
        for some in self.chosen(tokens).split(self.step()):
            yield self.reach(layer, some)

    def weighted_inputs(self, layer: str, tokens: int | None = None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """:meth:`inputs`, each batch with its tokens' :meth:`weights` ``[batch, length, 1]``."""
        weights = self.weights(layer)
        if weights is None:
            weights = torch.ones(self.states.shape[:2], device=self.states.device)
        yield from zip(self.inputs(layer, tokens), weights[self.chosen(tokens)].unsqueeze(-1).split(self.step()))

    def hessian(self, layer: str, weighted: bool = False, tokens: int | None = None) -> torch.Tensor:
        """X^T X, float64 ``[in, in]``: products of a batch in float32, summed in float64.

        weighted: every token by :meth:`weights`. tokens: of about so many, as in :meth:`inputs`; of all if ``None``.
        """
        gram, weights = Gram(), self.weights(layer) if weighted else None
        for some in self.chosen(tokens).split(self.step(TOGETHER)):
            x = self.reach(layer, some)
            gram.add(x, _weighted(x, weights, some))
        return gram.result()

    def statistics(self, layer: str, tokens: int | None = None) -> InputStatistics:
        """Mean |x| and its like, per input channel of ``layer``; tokens: as in :meth:`inputs`."""
        running = None
        for x in self.inputs(layer, tokens):
            running = running or RunningStatistics(x.shape[-1], device=x.device)
            running.add(x, f"{self.name}.{layer}")
        return running.result()

    @torch.no_grad()
    def moments(self, layer: str) -> Moments:
        """The Hessian of ``layer`` and, with a twin, the drift of its inputs, both by :meth:`weights`.

        For layers in the order of :data:`.stream.SHARED`: from here on, nothing before ``layer`` may change.
        """
        streams = [self] if self.twin is None else [self, self.twin]
        for stream in streams:
            stream.come_to(layer)
        weights = self.weights(layer)
        hessian, drift, stream_drift = Gram(), Gram(symmetric=False), Gram(symmetric=False)
        for some in self.batches(TOGETHER):
            x, *undisturbed = (stream.reach(layer, some) for stream in streams)
            weighted = _weighted(x, weights, some)
            hessian.add(x, weighted)
            if undisturbed:
                drift.add(undisturbed[0] - x, weighted)
                if layer in ADDED:
                    stream_drift.add(self.twin.states[some] - self.states[some], weighted)
        return Moments(hessian.result(), drift.result(), stream_drift.result())

    def weights(self, layer: str) -> torch.Tensor | None:
        """How much an error in what ``layer`` makes of a token counts, float32 ``[samples, length]``, 1 on average.

        What attention and MLP make is added to the residual stream, and whatever reads the stream divides it by its
        size first (RMSNorm). So an error at a token whose stream is ten times as large counts a hundredth. Without
        this, a few tokens with large activations decide alone. The size is taken behind attention, for ``down_proj``
        behind the MLP. q, k and v add nothing to the stream: ``None``, all count the same.
        """
        if layer in SHARED[0]:
            return None
        last = layer if layer in ADDED else ADDED[0]
        if last not in self._sizes:
            self._sizes[last] = (self.twin or self).sizes(last)
        inverse = 1 / self._sizes[last].clamp(min=1e-30)
        return inverse / inverse.mean()

    @property
    def tokens(self) -> int:
        return self.states.shape[0] * self.states.shape[1]

    def advance(self) -> None:
        """Replace ``states`` by the outputs of ``module`` as it is now, and the twin's by the twin's."""
        super().advance()
        if self.twin is not None:
            self.twin.advance()
        self.advanced += 1


def _weighted(x: torch.Tensor, weights: torch.Tensor | None, some: slice | torch.Tensor) -> torch.Tensor:
    """``x``, the inputs in ``some`` of the samples, each token by its weight; ``None``: all count the same."""
    return x if weights is None else x * weights[some].unsqueeze(-1)


def walk(model: nn.Module, token_ids: torch.Tensor, twin: bool = False) -> Iterator[CalibratedBlock]:
    """The blocks of ``model``, each with the states that arrive at it; token_ids: int64 ``[samples, length]``.

    Whoever iterates calls :meth:`CalibratedBlock.advance` once a block: before changing the module, so that the next
    block reads what the float model would hand it (AWQ), or after (GPTQ). twin: carry the float decoder along.
    Raises :class:`QtutorError` for token ids that are no matrix, not in the vocabulary, all equal, or too long for the
    model, and for NaN or infinite activations, naming where they first appear.
    """
    check_tokens(model, token_ids)
    states, arguments = first_states(model, token_ids)
    twin_states = states.clone() if twin else None
    for index, block in enumerate(decoder_blocks(model)):
        module = copy.deepcopy(block).eval().float().requires_grad_(False)
        page_out(block)
        dtype = next(block.parameters()).dtype
        calibrated = CalibratedBlock(f"model.layers.{index}", module, states, arguments[index], dtype=dtype)
        if twin:
            calibrated.twin = Stream(calibrated.name, copy.deepcopy(module), twin_states, arguments[index])
        yield calibrated
        assert calibrated.advanced == 1, f"{calibrated.name}: advance() is to be called once a block"


def check_tokens(model: nn.Module, token_ids: torch.Tensor) -> None:
    """Raise :class:`QtutorError` unless ``token_ids`` can calibrate ``model``."""
    check_token_ids(token_ids, model.config.vocab_size)
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest and token_ids.shape[1] > longest:
        raise QtutorError(
            f"calibration text: samples of {token_ids.shape[1]} tokens, but the model reads {longest} at most. Cut the "
            "text into more and shorter samples."
        )
    if token_ids.numel() > 1 and (token_ids == token_ids[0, 0]).all():
        raise QtutorError(
            f"calibration text: all {token_ids.numel()} tokens are {int(token_ids[0, 0])}. One token says nothing "
            "about which inputs are large together: take ordinary text, a few thousand tokens of it."
        )


@torch.no_grad()
def first_states(model: nn.Module, token_ids: torch.Tensor) -> tuple[torch.Tensor, list[dict]]:
    """What arrives at the first block, float32 ``[samples, length, hidden]``, and each block's other arguments.

    The model runs with blocks that only note how they are called and hand their input on. Positions and masks do not
    depend on the text, so one sample tells them.
    """
    blocks = decoder_blocks(model)
    noted = []

    def note(hidden_states: torch.Tensor, **arguments) -> torch.Tensor:
        noted.append((hidden_states, arguments))
        return hidden_states

    states = torch.empty(*token_ids.shape, model.config.hidden_size, device=model.device)
    try:
        for block in blocks:
            block.forward = note
        for number, ids in enumerate(token_ids.split(1)):
            noted.clear()
            model.base_model(ids.to(model.device), use_cache=False)
            check_finite(noted[0][0], "model.embed_tokens: its output")
            states[number] = noted[0][0][0]
    finally:
        for block in blocks:
            vars(block).pop("forward", None)
    return states, [_in_float32(arguments) for _, arguments in noted]


def _in_float32(value):
    if isinstance(value, dict):
        return {key: _in_float32(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_in_float32(item) for item in value)
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
