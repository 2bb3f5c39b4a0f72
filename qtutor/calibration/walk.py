"""One decoder block at a time: the inputs of its layers, and its output for the next block, quantized or not.

:func:`walk` carries the calibration text through the decoder as hidden states. Each block comes as a float32 copy that
a method may change as it likes; the model itself is only read. ``block.readings()`` goes through the layers of a
block in the order in which it runs them; layers with the same input (q, k, v; gate, up) come together. The walk moves
on by itself: the inputs of a layer are computed with the current weights of the layers before it.

    for block in walk(model, token_ids):
        for reading in block.readings():
            hessian = reading.moments().hessian
            ...  # change the weights of reading.layers

With ``twin``, the float decoder is carried along: each block also comes in its original form, with the states that
would arrive without any rounding. So a method can see the errors that earlier layers caused in its inputs
(:mod:`qtutor.methods.propagation`).

Memory beyond the model: hidden states (float32, ``samples * length * hidden``), one block in float32, the inputs of its
o_proj or down_proj (``samples * length * (hidden or intermediate)``), one batch of activations, and the moments
(float64, the square of the layer's width) while a method holds them. With ``twin``, states and block are held twice,
and the wanted outputs of o_proj or down_proj take the size of the states once more. Only the current block is used, so
blocks may also come from disk (:class:`~qtutor.calibration.mapped.Weights`).

A walk may begin at a later block, with the states that arrive there, or with the earlier blocks in their finished form
(:class:`Start`).

Left out: encoders, padding (all samples have one length), and decoders that mix other things into their blocks.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from qtutor.calibration.attention import attend_in_spans
from qtutor.calibration.block import CalibratedBlock
from qtutor.calibration.mapped import Weights
from qtutor.calibration.precision import WIDE, rounds
from qtutor.calibration.stream import Stream, check_finite
from qtutor.families import decoder_blocks, family_of
from qtutor.guards.ids import check_calibration
from qtutor.guards.running import in_eval


@dataclass(frozen=True)
class Start:
    """The place where a walk begins: block ``index``; all blocks before it are finished.

    states: the states that arrive there, and, with a twin, those that arrive at the twin's block, float32
    ``[samples, length, hidden]`` each. If states are not given, they are computed again: the walk runs the finished
    blocks, and ``refill`` puts the finished weights into their float32 copies. It is called with the name of a block
    and the copy.
    """

    index: int = 0
    states: tuple[torch.Tensor, ...] = ()
    refill: Callable[[str, nn.Module], None] | None = None


def walk(
    source: nn.Module | Weights,
    token_ids: torch.Tensor,
    twin: bool = False,
    token_weights: bool = True,
    wide: int | None = WIDE,
    start: Start | None = None,
) -> Iterator[CalibratedBlock]:
    """The blocks of a model, each with the states that arrive at it; token_ids: int64 ``[samples, length]``.

    source: the model, or its weights. When the caller gets the next block, the states move on through the last one with
    its current weights. twin: carry the float decoder along. token_weights: see :meth:`CalibratedBlock.weights`. wide:
    see :func:`~qtutor.calibration.precision.products`. start: leave out the blocks before it.
    Raises :class:`QtutorError` for token ids that are not a matrix, not in the vocabulary, all equal, or too long for
    the model, and for NaN or infinite activations, and names the place where they first appear.
    """
    weights, start = source if isinstance(source, Weights) else Weights(source), start or Start()
    model, family = weights.model, family_of(weights.model)
    check_calibration(token_ids, model.config)
    with weights.around_blocks():
        states, arguments = first_states(model, token_ids)
    twin_states = states.clone() if twin else None
    if start.states:
        states, *others = (given.to(states.device) for given in start.states)
        twin_states = others[0] if twin else None
    for index, block in enumerate(decoder_blocks(model)):
        if index < start.index and start.states:
            continue
        module = weights.block(index)
        if rounds(model.config.hidden_size, wide):
            attend_in_spans(module.get_submodule(family.halves[0].parent))
        place = f"{family.blocks}.{index}", module, states, arguments[index], family, wide
        calibrated = CalibratedBlock(*place, dtype=next(block.parameters()).dtype, token_weights=token_weights)
        if twin:
            calibrated.twin = Stream(place[0], copy.deepcopy(module), twin_states, arguments[index], family, wide)
        if index < start.index:
            start.refill(calibrated.name, module)
        else:
            yield calibrated
        calibrated.advance()
        del module, place, calibrated  # free them before the next block is copied


@torch.no_grad()
def first_states(model: nn.Module, token_ids: torch.Tensor) -> tuple[torch.Tensor, list[dict]]:
    """The states at the first block, float32 ``[samples, length, hidden]``, and each block's other arguments.

    The model runs with blocks that only record their arguments and return their input. Positions and masks do not
    depend on the text, so one sample shows them.
    """
    noted = []

    def note(hidden_states: torch.Tensor, **arguments) -> torch.Tensor:
        noted.append((hidden_states, arguments))
        return hidden_states

    embedding = family_of(model).embedding
    device = model.get_submodule(embedding).weight.device
    states = torch.empty(*token_ids.shape, model.config.hidden_size, device=device)
    with in_place_of_blocks(model, note):
        for number, ids in enumerate(token_ids.split(1)):
            noted.clear()
            model.base_model(ids.to(device), use_cache=False)
            check_finite(noted[0][0], f"{embedding}: its output")
            states[number] = noted[0][0][0]
    return states, [_in_float32(arguments) for _, arguments in noted]


@contextlib.contextmanager
def in_place_of_blocks(model: nn.Module, forward: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Inside this context, ``model`` runs ``forward(hidden_states, **arguments)`` in place of each of its blocks.

    Dropout is off.
    """
    blocks = decoder_blocks(model)
    own = [vars(block).get("forward") for block in blocks]  # accelerate puts one of its own into a module
    try:
        for block in blocks:
            block.forward = forward
        with in_eval(model):
            yield
    finally:
        for block, former in zip(blocks, own):
            vars(block).pop("forward", None)
            if former is not None:
                block.forward = former


def _in_float32(value):
    if isinstance(value, dict):
        return {key: _in_float32(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_in_float32(item) for item in value)
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
