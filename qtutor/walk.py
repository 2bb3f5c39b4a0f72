"""One decoder block at a time: what its layers read, and what it hands to the next, quantized or not.

:func:`walk` carries the calibration text through the decoder as hidden states. Each block comes as a float32 copy that
a method may change as it likes; the model itself is only read. Layers that share an input (q, k, v; gate, up) are
served together.

With ``twin`` the float decoder is carried along: each block comes a second time as it was, with the states that would
have arrived had nothing been rounded, so that a method can see what earlier layers did to its inputs
(:mod:`qtutor.propagation`).

Memory beyond the model: hidden states (float32, ``samples * length * hidden``), one block in float32, the inputs of its
o_proj and down_proj (``samples * length * (hidden + intermediate)``), one batch of activations, and the moments
(float64, the square of the layer's width) while a method holds them; with ``twin`` all of that twice. No block but the
one at hand is touched, so blocks may as well come from disk.

Left out: encoders, padding (all samples have one length), and decoders that mix other things into their blocks.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from qtutor.calibrate import BATCH, InputStatistics, RunningStatistics, check_token_ids
from qtutor.errors import QtutorError
from qtutor.families import decoder_blocks
from qtutor.stream import ADDED, AFTER_ATTENTION, SHARED, Stream, check_finite


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
        for some in self.chosen(tokens).split(BATCH):
            yield self.reach(layer, some)

    def hessian(self, layer: str, weighted: bool = False, tokens: int | None = None) -> torch.Tensor:
        """X^T X, float64 ``[in, in]``: products of a batch in float32, summed in float64.

        weighted: every token by :meth:`weights`. tokens: of about so many, as in :meth:`inputs`; of all if ``None``.
        """
        total, weights = None, self.weights(layer) if weighted else None
        for some in self.chosen(tokens).split(BATCH):
            x = self.reach(layer, some)
            left = x if weights is None else x * weights[some].unsqueeze(-1)
            product = left.flatten(0, 1).T @ x.flatten(0, 1)
            total = product.double() if total is None else total.add_(product)
        return total

    def statistics(self, layer: str, tokens: int | None = None) -> InputStatistics:
        """Mean |x| and its like, per input channel of ``layer``; tokens: as in :meth:`inputs`."""
        running = None
        for x in self.inputs(layer, tokens):
            running = running or RunningStatistics(x.shape[-1], device=x.device)
            running.add(x, f"{self.name}.{layer}")
        return running.result()

    @torch.no_grad()
    def moments(self, layer: str) -> "Moments":
        """The Hessian of ``layer`` and, with a twin, the drift of its inputs, both by :meth:`weights`.

        For layers in the order of :data:`~qtutor.stream.SHARED`: from here on, nothing before ``layer`` may change.
        """
        streams = [self] if self.twin is None else [self, self.twin]
        if layer in ADDED:
            for stream in streams:
                stream.keep(layer)
        sums = {}

        def add(name: str, left: torch.Tensor, right: torch.Tensor) -> None:
            product = left.flatten(0, 1).T @ right.flatten(0, 1)  # in float32; the sum is in float64
            sums[name] = sums[name].add_(product) if name in sums else product.double()

        weights = self.weights(layer)
        for some in self.batches():
            x, *undisturbed = (stream.reach(layer, some) for stream in streams)
            weighted = x * weights[some].unsqueeze(-1)
            add("hessian", weighted, x)
            if undisturbed:
                add("drift", undisturbed[0] - x, weighted)
                if layer in ADDED:
                    residual, undisturbed = (stream.residual(layer, some) for stream in streams)
                    add("stream_drift", undisturbed - residual, weighted)
        return Moments(**sums)

    @torch.no_grad()
    def weights(self, layer: str) -> torch.Tensor:
        """How much an error in what ``layer`` makes of a token counts, float32 ``[samples, length]``, 1 on average.

        What attention and MLP make is added to the residual stream, and whatever reads the stream divides it by its
        size first (RMSNorm). So an error at a token whose stream is ten times as large counts a hundredth. Without
        this, a few tokens with large activations decide alone. q, k and v add nothing to the stream: all ones.
        """
        if layer in SHARED[0]:
            return torch.ones(self.states.shape[:2], device=self.states.device)
        place = layer.split(".")[0]
        if place not in self._sizes:
            stream = self.twin or self
            behind = (lambda some: stream.reach(AFTER_ATTENTION, some)) if place == "self_attn" else stream.run
            self._sizes[place] = torch.cat([behind(some).square().mean(-1) for some in self.batches()])
        inverse = 1 / self._sizes[place].clamp(min=1e-30)
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


@dataclass(frozen=True)
class Moments:
    """Sums over tokens of products of a layer's inputs, float64 ``[in, in]``; each token by its weight w.

    hessian: of ``w x x^T``, x being what arrives. drift: of ``w (x' - x) x^T``, x' being what would arrive had nothing
    been rounded before; ``None`` without a twin. stream_drift ``[hidden, in]``: the same for the residual stream r that
    the layer's output is added to, ``w (r' - r) x^T``; only for layers in :data:`~qtutor.stream.ADDED`.
    """

    hessian: torch.Tensor
    drift: torch.Tensor | None = None
    stream_drift: torch.Tensor | None = None


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
