"""``quantize(model, Recipe(...))``: layers are finished one after another, and a sink takes each finished layer.

:func:`.finishing.finished` goes through the decoder and yields every layer once it is packed; a sink (:mod:`.sinks`)
stores it. :func:`quantize` puts packed layers into the model, all at the end, so that a failure or an interrupt leaves
the model as it was; at 4 bits that adds a quarter of a bf16 model, never a second copy. :func:`quantize_to` writes the
layers to a folder, for models larger than memory, and continues a run that was killed. :mod:`.planning` says beforehand
what a run will do, and :mod:`.fingerprints` whether a killed run had the same inputs. Embeddings, norms and lm_head
stay as they are unless the recipe names them (AWQ moves its scales into norms).
"""

import os
from collections.abc import Callable

import torch
from torch import nn

from qtutor.calibration.mapped import Weights
from qtutor.core.quantized import all_finite
from qtutor.decoder import is_embedded
from qtutor.errors import QtutorError, warn
from qtutor.families import linear_layers
from qtutor.files import as_qtutor_error, parents_made
from qtutor.files.unfinished import bytes_kept, unfinished
from qtutor.formats import native
from qtutor.formats.readback import read_back
from qtutor.guards.ids import LENGTH, samples_of
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

    calibration: token ids, int64 ``[samples, length]``, of text like the model's later input; with the model's
    ``tokenizer``, it may be the texts themselves (:mod:`qtutor.guards.ids`). It may be left out for the embedded
    decoder, which has its own text, and for any other decoder with a ``tokenizer``: then the text of
    :mod:`qtutor.calibration.builtin` is used, and a warning says so. Methods that do not look at inputs (rtn, nf4, fp4,
    int8, fp8) ignore it. About ten thousand tokens are enough.
    progress: show a bar with an estimate if the work takes longer than a second.
    Raises :class:`QtutorError` (naming the layer) for NaN, Inf, a width that the group size does not divide, an unknown
    family, a model that does not fit its config (:mod:`qtutor.guards.model`), unusable calibration text, or a model
    that is quantized already; the model is then unchanged.
    """
    model = decoder_of(model)  # before any work, it refuses a model that cannot be quantized
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
    model.qtutor_recipe = recipe.as_dict()  # is saved with the model
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

    The folder is the same, to the byte, as :func:`quantize` and :func:`qtutor.export` would write for ``source`` loaded
    in its own dtype. source: what :func:`qtutor.load` accepts, or opened weights
    (:func:`qtutor.formats.streamed.opened`). calibration, progress: as in :func:`quantize`. tokenizer: its files are
    written; the default is that of ``source``. device: where blocks are computed; the default is the GPU if there is
    one. tell: a function that is called with the plan before the work, and with a sentence when finished blocks are
    kept, or a run is continued.

    Every finished block is kept in a hidden folder beside ``out``. If the function is called again after a kill or an
    interrupt, with the same recipe, checkpoint and text, the run continues there; otherwise it starts anew. Nothing is
    written to ``out`` before everything is finished, and an earlier export there stays until then. Raises the same
    errors as :func:`quantize` and :func:`qtutor.export`.
    """
    weights, tokenizer, recipe, token_ids = _ready(source, recipe, calibration, tokenizer, device)
    made = plan_of(weights, recipe, token_ids, tokenizer)
    place = native.target(out, sources=weights.places, need=made.nbytes - bytes_kept(out))
    tell(made)
    with as_qtutor_error(place), parents_made(place), unfinished(place, fingerprint(weights, recipe, token_ids)) as run:
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
                tell(f"the finished part is kept in {run.folder}: the same call continues from there.")
            raise
    return Report(recipe, tuple(row for rows in sink.rows for row in rows))


def plan(source: Source, recipe: Recipe, calibration=None, tokenizer=None, device: str | None = None) -> Plan:
    """What :func:`quantize_to` would do with the same arguments; ``print`` shows it. Nothing is written."""
    weights, tokenizer, recipe, token_ids = _ready(source, recipe, calibration, tokenizer, device)
    return plan_of(weights, recipe, token_ids, tokenizer)


def _ready(source: Source, recipe: Recipe, calibration, tokenizer, device: str | None):
    """Weights, tokenizer, recipe and token ids, checked to fit each other."""
    from qtutor.formats.streamed import opened  # it imports decoders of all kinds, for which quantize() need not wait

    weights, own = (source, None) if isinstance(source, Weights) else opened(source, device)
    tokenizer = own if tokenizer is None else tokenizer
    _check(weights, recipe)
    token_ids = _token_ids(weights.model, recipe, calibration, tokenizer)
    return weights, tokenizer, _with_bits(weights, recipe, token_ids, tokenizer), token_ids


def _check(weights: Weights, recipe: Recipe) -> None:
    """Before any work, refuse a model that ``recipe`` cannot quantize."""
    model = weights.model
    if not isinstance(recipe, Recipe):
        raise QtutorError(f"recipe is a {type(recipe).__name__}: pass a qtutor.Recipe, like Recipe(method='gptq').")
    if any(isinstance(module, QuantWeight) for module in model.modules()):
        raise QtutorError("the model is quantized already; load the float checkpoint again to quantize it differently.")
    check_replaceable(model, recipe.needs_calibration, outside_layers(model, recipe))
    # NaN and Inf in norms, biases, embeddings and lm_head; layers that will be rounded are checked one by one.
    rounded = {f"{name}.weight" for name in linear_layers(model)}
    for name, _ in model.named_parameters():
        if name not in rounded:
            tensor = weights.tensor(name)
            if not all_finite(tensor):
                raise QtutorError(f"{name}: it holds numbers that are NaN or infinite: repair the checkpoint first.")
            weights.release([tensor])


def _token_ids(model: nn.Module, recipe: Recipe, calibration, tokenizer) -> torch.Tensor | None:
    """The calibration text, int64 ``[samples, length]``; ``None`` if the recipe does not look at inputs.

    Without ``calibration``, the embedded decoder gets text from its training. Any other model gets the built-in text if
    there is a ``tokenizer``, and otherwise an error is raised.
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
            "[samples, length], for instance 128 samples of 512 tokens of text like the model's later input. If you "
            "pass only tokenizer=, the built-in text is used."
        )
    return calibration_tokens()


def _builtin(model: nn.Module, tokenizer) -> torch.Tensor | None:
    """The built-in text, with a warning that names it; ``None`` for the embedded decoder, which has its own text."""
    if is_embedded(model.config):
        return None
    from qtutor.calibration.builtin import builtin_calibration

    text = builtin_calibration(tokenizer, min(LENGTH, getattr(model.config, "max_position_embeddings", None) or LENGTH))
    warn(
        f"no calibration text was given, so {text.told} are used. Text like the model's later input gives better "
        "results."
    )
    return text.token_ids


def _with_bits(weights: Weights, recipe: Recipe, token_ids: torch.Tensor | None, tokenizer) -> Recipe:
    """``recipe`` with bits for every layer, if it gives a budget."""
    if not recipe.is_mixed:
        return recipe
    from qtutor.budget import choose

    return choose(weights, recipe, token_ids, tokenizer)
