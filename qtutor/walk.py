"""One decoder block at a time: what its layers read, and what it hands to the next, quantized or not.

:func:`walk` carries the calibration text through the decoder as hidden states. Each block comes as a float32 copy that
a method may change as it likes; the model itself is only read. Layers that share an input (q, k, v; gate, up) are
served by one pass, and a pass runs no further than the layer it is about: for ``down_proj`` a whole block, for
``q_proj`` only a norm.

Memory beyond the model: the hidden states (float32, ``samples * length * hidden``), one block in float32, one batch of
activations, and one Hessian (float64, the square of the layer's width) while a method holds it. No block but the one at
hand is touched, so blocks may as well come from disk.

Left out: encoders, padding (all samples have one length), and decoders that mix other things into their blocks.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from qtutor.calibrate import BATCH, InputStatistics, RunningStatistics, check_token_ids
from qtutor.errors import QtutorError
from qtutor.families import decoder_blocks

# Layers that read the same tensor, in the order in which a block runs them.
SHARED = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


class _Reached(Exception):
    """Ends a pass at the layer it is about."""


@dataclass
class CalibratedBlock:
    """A decoder block and the calibration states that arrive at it.

    name: ``"model.layers.3"``. module: the float32 copy, free to be changed. states: float32
    ``[samples, length, hidden]``, the block's inputs. arguments: what the model passes to the block besides
    (positions, mask). dtype: what the model stores the block in.
    """

    name: str
    module: nn.Module
    states: torch.Tensor
    arguments: dict
    dtype: torch.dtype
    advanced: int = 0

    @torch.no_grad()
    def inputs(self, layer: str, tokens: int | None = None) -> Iterator[torch.Tensor]:
        """The inputs of ``layer`` (``"mlp.up_proj"``), batch by batch, float32 ``[batch, length, in]``.

        tokens: about so many are enough; whole samples are taken, at random.
        Raises :class:`QtutorError` for NaN or infinite ones, naming the layer.
        """
        samples, length, _ = self.states.shape
        wanted = samples if tokens is None else min(max(tokens // length, 1), samples)
        # At random, but always the same: every eighth sample may be of a kind of its own.
        chosen = torch.randperm(samples, generator=torch.Generator().manual_seed(0))[:wanted].sort().values
        reached = []

        def stop(_module: nn.Module, arguments: tuple) -> None:
            reached.append(arguments[0])
            raise _Reached

        for some in chosen.split(BATCH):
            hook = self.module.get_submodule(layer).register_forward_pre_hook(stop)
            try:
                self.module(self.states[some], **self.arguments)
            except _Reached:
                x = reached.pop()
            finally:
                hook.remove()
            check_finite(x, f"{self.name}.{layer}: its input")
            yield x

    def hessian(self, layer: str) -> torch.Tensor:
        """X^T X over all tokens, float64 ``[in, in]``: products of a batch in float32, summed in float64."""
        total = None
        for x in self.inputs(layer):
            x = x.flatten(0, 1)
            product = x.T @ x
            total = product.double() if total is None else total.add_(product)
        return total

    def statistics(self, layer: str) -> InputStatistics:
        """Mean |x| and its like, per input channel of ``layer``."""
        running = None
        for x in self.inputs(layer):
            running = running or RunningStatistics(x.shape[-1], device=x.device)
            running.add(x, f"{self.name}.{layer}")
        return running.result()

    @property
    def tokens(self) -> int:
        return self.states.shape[0] * self.states.shape[1]

    @torch.no_grad()
    def advance(self) -> None:
        """Replace ``states`` by the outputs of ``module`` as it is now."""
        for states in self.states.split(BATCH):  # views: written in place
            output = self.module(states, **self.arguments)
            check_finite(output, f"{self.name}: its output")
            states.copy_(output)
        self.advanced += 1


def walk(model: nn.Module, token_ids: torch.Tensor) -> Iterator[CalibratedBlock]:
    """The blocks of ``model``, each with the states that arrive at it; token_ids: int64 ``[samples, length]``.

    Whoever iterates calls :meth:`CalibratedBlock.advance` once a block: before changing the module, so that the next
    block reads what the float model would hand it (AWQ), or after (GPTQ).
    Raises :class:`QtutorError` for token ids that are no matrix, not in the vocabulary, all equal, or too long for the
    model, and for NaN or infinite activations, naming where they first appear.
    """
    check_tokens(model, token_ids)
    states, arguments = first_states(model, token_ids)
    for index, block in enumerate(decoder_blocks(model)):
        module = copy.deepcopy(block).eval().float().requires_grad_(False)
        dtype = next(block.parameters()).dtype
        calibrated = CalibratedBlock(f"model.layers.{index}", module, states, arguments[index], dtype)
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


def check_finite(x: torch.Tensor, what: str) -> None:
    """Raise :class:`QtutorError` where ``x [batch, length, channels]`` is NaN or infinite; ``what`` names it."""
    finite = torch.isfinite(x)
    if not finite.all():
        sample, token, channel = (~finite).nonzero()[0].tolist()
        raise QtutorError(
            f"{what} is {x[sample, token, channel].item()} (token {token} of a sample, channel {channel}), the first "
            "in the model that is not a finite number. Look for broken weights just before it."
        )
