"""``quantize(model, Recipe(...))``: layer after layer is finished, and a sink takes what is.

:func:`.finishing.finished` goes through the decoder and yields every layer once it is packed; a sink (:mod:`.sinks`)
says where it goes. :func:`quantize` puts packed layers into the model, all at the end, so that a failure or an
interrupt leaves the model as it was; at 4 bits that adds a quarter of a bf16 model, never a second copy.
:func:`quantize_to` writes them to a folder, for models larger than memory, and goes on where it was killed;
:mod:`.planning` says beforehand what it will do, :mod:`.fingerprints` whether a killed run was the same. Embeddings,
norms and lm_head stay as they are unless the recipe says so (AWQ moves its scales into norms).
"""

import os
import warnings
from collections.abc import Callable

import torch
from torch import nn

from qtutor.calibration.mapped import Weights
from qtutor.core.quantized import all_finite
from qtutor.decoder import is_embedded
from qtutor.errors import QtutorError
from qtutor.families import linear_layers
from qtutor.files import parents_made, told
from qtutor.files.unfinished import bytes_kept, unfinished
from qtutor.formats import native
from qtutor.formats.readback import read_back
from qtutor.guards.ids import samples_of
from qtutor.guards.model import check_replaceable, decoder_of
from qtutor.pipeline.fingerprints import fingerprint
from qtutor.pipeline.finishing import finished
from qtutor.pipeline.planning import Plan, outside_layers, plan_of
from qtutor.pipeline.sinks import IntoModel
from qtutor.pipeline.sinks.folder import IntoFolder
from qtutor.recipe import Recipe
from qtutor.report import Report
from qtutor.runtime.linear import QuantWeight

Source = str | os.PathLike | Weights


def quantize(
    model: nn.Module, recipe: Recipe, calibration: torch.Tensor | None = None, progress: bool = True, tokenizer=None
) -> Report:
    """Quantize ``model`` (a transformers decoder, any float dtype, any device) in place by ``recipe``.

    calibration: token ids, int64 ``[samples, length]``, text like what the model will read, or with the model's
    ``tokenizer`` the texts themselves (:mod:`qtutor.guards.ids`). It may be left out for the embedded decoder, and with
    the ``tokenizer`` for any: then :mod:`qtutor.calibration.builtin` is taken, and a warning says so. Methods that look
    at no inputs (rtn, nf4, fp4, int8, fp8) ignore it. Some ten thousand tokens will do.
    progress: show a bar with an estimate where the work takes longer than a second.
    Raises :class:`QtutorError` (naming the layer) for NaN, Inf, a width that no group divides, a family that is not
    known, a model that is not as its config says (:mod:`qtutor.guards.model`), unusable calibration text, or a model
    that is quantized already; the model is then unchanged.
    """
    model = decoder_of(model)  # refuses what cannot be quantized before any work
    weights = Weights(model)
    _check(weights, recipe)
    token_ids = _token_ids(model, recipe, calibration, tokenizer)
    recipe = _with_bits(weights, recipe, token_ids, tokenizer)
    sink = IntoModel(model)
    for item in finished(weights, recipe, token_ids, progress):
        sink.take(item)
    sink.finish()
    if recipe.embeddings or recipe.lm_head:
        model.config.tie_word_embeddings = False  # each of the two is now a tensor of its own
    model.qtutor_recipe = recipe.as_dict()  # for what is saved
    return Report(recipe, tuple(sink.rows))


def quantize_to(
    source: Source,
    out: str | os.PathLike,
    recipe: Recipe,
    calibration: torch.Tensor | None = None,
    tokenizer=None,
    device: str | None = None,
    progress: bool = True,
    tell: Callable[[object], None] = print,
) -> Report:
    """Quantize ``source`` by ``recipe`` and write the folder ``out``, with one block in memory at a time.

    The folder is what :func:`quantize` and :func:`qtutor.export` would write of ``source`` loaded in its own dtype, to
    the byte. source: what :func:`qtutor.load` takes, or opened weights (:func:`qtutor.formats.streamed.opened`).
    calibration, progress: as in :func:`quantize`. tokenizer: whose files are written; that of ``source`` if ``None``.
    device: where blocks are computed, by itself the GPU if there is one. tell: is called with the plan before the work,
    and with a sentence about what is kept, or gone on with.

    Every finished block is kept beside ``out`` in a hidden folder. Called again after a kill or an interrupt, with the
    same recipe, checkpoint and text, the run goes on there; otherwise it starts anew. Nothing is at ``out`` before all
    is finished, and an earlier export there stays until then. Raises as :func:`quantize` and :func:`qtutor.export` do.
    """
    weights, tokenizer, recipe, token_ids = _ready(source, recipe, calibration, tokenizer, device)
    made = plan_of(weights, recipe, token_ids, tokenizer)
    place = native.target(out, sources=weights.places, need=made.nbytes - bytes_kept(out))
    tell(made)
    with told(place), parents_made(place), unfinished(place, fingerprint(weights, recipe, token_ids)) as run:
        if run.differs:
            tell(f"an unfinished run for {place} had another {' and another '.join(run.differs)}: starting anew.")
        try:
            with IntoFolder(run, made, weights, tell) as sink:
                native.write_others(run.new, made.packed, tokenizer, recipe.as_dict(), made.files)
                if not sink.whole:
                    for item in finished(weights, recipe, token_ids, progress, sink.start):
                        sink.take(item)
                    sink.finish()
            read_back(place, lambda: native.opened(run.new))
            native.refuse_others(place)  # something may have been put there in the meantime
        except BaseException:
            if run.done:
                tell(f"what is finished is kept in {run.folder}: the same call goes on from there.")
            raise
    return Report(recipe, tuple(row for rows in sink.rows for row in rows))


def plan(source: Source, recipe: Recipe, calibration=None, tokenizer=None, device: str | None = None) -> Plan:
    """What :func:`quantize_to` would do with the same arguments; ``print`` shows it. Nothing is written."""
    weights, tokenizer, recipe, token_ids = _ready(source, recipe, calibration, tokenizer, device)
    return plan_of(weights, recipe, token_ids, tokenizer)


def _ready(source: Source, recipe: Recipe, calibration, tokenizer, device: str | None):
    """Weights, tokenizer, recipe and token ids, once they are found fit for each other."""
    from qtutor.formats.streamed import opened  # which asks for decoders of all kinds: whoever has one need not wait

    weights, own = (source, None) if isinstance(source, Weights) else opened(source, device)
    tokenizer = own if tokenizer is None else tokenizer
    _check(weights, recipe)
    token_ids = _token_ids(weights.model, recipe, calibration, tokenizer)
    return weights, tokenizer, _with_bits(weights, recipe, token_ids, tokenizer), token_ids


def _check(weights: Weights, recipe: Recipe) -> None:
    """Refuse before any work what cannot be quantized by ``recipe``."""
    model = weights.model
    if not isinstance(recipe, Recipe):
        raise QtutorError(f"recipe is a {type(recipe).__name__}: pass a qtutor.Recipe, as Recipe(method='gptq').")
    if any(isinstance(module, QuantWeight) for module in model.modules()):
        raise QtutorError("the model is quantized already; load the float checkpoint again to quantize it differently.")
    check_replaceable(model, recipe.needs_calibration, outside_layers(model, recipe))
    # NaN and Inf in norms, biases, embeddings and lm_head; layers to be rounded are looked at one by one.
    rounded = {f"{name}.weight" for name in linear_layers(model)}
    for name, _ in model.named_parameters():
        if name not in rounded:
            tensor = weights.tensor(name)
            if not all_finite(tensor):
                raise QtutorError(f"{name}: it holds numbers that are NaN or infinite: repair the checkpoint first.")
            weights.release([tensor])


def _token_ids(model: nn.Module, recipe: Recipe, calibration, tokenizer) -> torch.Tensor | None:
    """What the layers shall read, int64 ``[samples, length]``; ``None`` where the recipe looks at no inputs.

    Without ``calibration`` it is training text for the embedded decoder, with the ``tokenizer`` the built-in text for
    any other model, and else an error.
    """
    from qtutor.decoder.text import calibration_tokens

    if not recipe.needs_calibration:
        return None
    if calibration is None and tokenizer is not None:
        calibration = _builtin(model, tokenizer)
    if calibration is not None:
        return samples_of(calibration, tokenizer, getattr(model.config, "max_position_embeddings", None))
    if not is_embedded(model.config):
        raise QtutorError(
            f"{recipe.why_text} looks at the layers' inputs and needs text: pass calibration=token_ids, int64 "
            "[samples, length], for instance 128 samples of 512 tokens of what the model will read. With tokenizer= "
            "alone the built-in text is taken."
        )
    return calibration_tokens()


def _builtin(model: nn.Module, tokenizer) -> torch.Tensor | None:
    """The built-in text, with a word on what it is; ``None`` for the embedded decoder, which has its own."""
    if is_embedded(model.config):
        return None
    from qtutor.calibration.builtin import builtin_calibration
    from qtutor.calibration.text import LENGTH

    text = builtin_calibration(tokenizer, min(LENGTH, getattr(model.config, "max_position_embeddings", None) or LENGTH))
    warnings.warn(
        f"no calibration text was given, so {text.told} are taken. Text like what the model will read does better.",
        stacklevel=4,
    )
    return text.token_ids


def _with_bits(weights: Weights, recipe: Recipe, token_ids: torch.Tensor | None, tokenizer) -> Recipe:
    """``recipe`` with bits for every layer, where it gives a budget."""
    if not recipe.is_mixed:
        return recipe
    from qtutor.budget import choose

    return choose(weights, recipe, token_ids, tokenizer)
