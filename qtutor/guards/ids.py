"""One entrance for token ids: all usual forms of them become a tensor, int64 ``[samples, length]`` (or ``[count]``).

These forms are tensors, arrays, lists of ids, a tokenizer's output, lists of all these, and, with a ``tokenizer``, the
texts themselves. Code that reads the ids calls :func:`check_token_ids` or :func:`check_calibration` to check that their
values fit its model.
"""

from collections.abc import Mapping

import numpy as np
import torch

from qtutor.errors import QtutorError

LENGTH, SAMPLES = 256, 128  # tokens in a sample, and the most samples, if a caller does not say


def samples_of(given, tokenizer=None, context: int | None = None) -> torch.Tensor:
    """Token ids to calibrate with, int64 ``[samples, length]``.

    Texts (one, or a list) are joined, with the tokens that ``tokenizer`` puts around each. They are cut into samples of
    :data:`LENGTH` tokens, or of ``context`` if that is less, and at most :data:`SAMPLES` evenly spread ones are taken.
    Raises :class:`QtutorError` for texts without a tokenizer, texts that are too short for one sample, padded samples,
    samples of different lengths, and anything that holds no ids.
    """
    texts = [given] if isinstance(given, str) else given
    if isinstance(texts, np.ndarray) and texts.dtype.kind in "UO":
        texts = texts.ravel().tolist()
    if isinstance(texts, list | tuple) and texts and all(isinstance(text, str) for text in texts):
        return _cut(texts, tokenizer, min(LENGTH, context or LENGTH))
    return ids_of(given)


def evenly(ids: torch.Tensor, length: int, samples: int) -> torch.Tensor:
    """``ids [count]`` cut into rows of ``length``; at most ``samples`` rows, evenly spread; none if ids are too few."""
    whole = len(ids) // length
    chosen = torch.arange(min(whole, samples)) * whole // max(min(whole, samples), 1)
    return ids[: whole * length].reshape(whole, length)[chosen]


def ids_of(given) -> torch.Tensor:
    """Token ids as a tensor of one or two dimensions. A tensor is returned unchanged, and its dtype is not checked."""
    if isinstance(given, torch.Tensor):
        if given.is_meta or given.is_nested or given.layout != torch.strided:
            kind = "on the device 'meta', without values" if given.is_meta else "sparse or nested"
            raise QtutorError(f"token ids: a tensor {kind}. Pass whole numbers, int64 [samples, length].")
        return given
    if isinstance(given, np.ndarray | np.integer) and given.dtype.kind in "iu":
        return torch.from_numpy(np.array(given, np.int64))
    if isinstance(given, Mapping):
        return _unpadded(given)
    if isinstance(given, list | tuple) and given:
        if all(isinstance(item, int | np.integer) and abs(int(item)) < 2**63 for item in given):
            return torch.tensor([int(item) for item in given])
        if not any(isinstance(item, str | int | np.integer) for item in given):
            return _stacked([ids_of(item) for item in given])
    raise QtutorError(
        f"token ids: {_described(given)}. Pass whole numbers, int64 [samples, length]: a tensor, an array, lists of "
        "ids, or what the model's tokenizer returns for texts of equal length. quantize() also accepts texts, if "
        "you pass tokenizer=."
    )


def check_token_ids(token_ids: torch.Tensor, vocabulary: int) -> None:
    """Raise :class:`QtutorError` unless ``token_ids`` is an int64 ``[samples, length]`` of ids below ``vocabulary``."""
    if token_ids.dim() != 2 or token_ids.dtype not in (torch.int64, torch.int32) or token_ids.numel() == 0:
        raise QtutorError(
            f"calibration text: {token_ids.dtype} of shape {list(token_ids.shape)}; token ids, int64 [samples, "
            "length], are needed. Cut one long text with ids[: samples * length].reshape(samples, length)."
        )
    low, high = int(token_ids.min()), int(token_ids.max())
    if low < 0 or high >= vocabulary:
        raise QtutorError(
            f"calibration text: token ids run from {low} to {high}, but the model's vocabulary has {vocabulary} ids, 0 "
            f"to {vocabulary - 1}. Was the text tokenized with another model's tokenizer?"
        )


def check_calibration(token_ids: torch.Tensor, config) -> None:
    """Raise :class:`QtutorError` unless ``token_ids`` can calibrate a model of this ``config``."""
    check_token_ids(token_ids, config.vocab_size)
    longest = getattr(config, "max_position_embeddings", None)
    if longest and token_ids.shape[1] > longest:
        raise QtutorError(
            f"calibration text: samples of {token_ids.shape[1]} tokens, but the model reads {longest} at most. Cut the "
            "text into more and shorter samples."
        )
    if token_ids.numel() > 1 and (token_ids == token_ids[0, 0]).all():
        raise QtutorError(
            f"calibration text: all {token_ids.numel()} tokens are {int(token_ids[0, 0])}. One token says nothing "
            "about which inputs are large together: use a few thousand tokens of ordinary text."
        )


def _cut(texts: list[str], tokenizer, length: int) -> torch.Tensor:
    """Samples of ``length`` tokens, spread evenly over all ``texts``."""
    if tokenizer is None:
        raise QtutorError(
            f"calibration is {_described(texts[0] if len(texts) == 1 else texts)}: texts need the model's tokenizer, "
            "quantize(model, recipe, texts, tokenizer=tokenizer). A file's text is Path(name).read_text()."
        )
    if not callable(tokenizer):
        raise QtutorError(
            f"tokenizer is {_described(tokenizer)}: pass the one that qtutor.load or AutoTokenizer loads."
        )
    ids = torch.tensor(
        [number for text in texts for number in tokenizer(text, verbose=False)["input_ids"]], dtype=torch.int64
    )
    samples = evenly(ids, length, SAMPLES)
    if not len(samples):
        raise QtutorError(
            f"calibration: {len(texts)} texts with {len(ids)} tokens in all; a sample takes {length}. Give more text, "
            "about ten thousand tokens (the content of a file, not its name)."
        )
    return samples


def _unpadded(given: Mapping) -> torch.Tensor:
    """The ids in the mapping that a tokenizer returned."""
    if "input_ids" not in given:
        raise QtutorError(f"token ids: a mapping of {', '.join(map(repr, list(given)[:5]))}; 'input_ids' is needed.")
    mask = given.get("attention_mask")
    if mask is not None and not bool((ids_of(mask) != 0).all()):
        raise QtutorError(
            "token ids: attention_mask has zeros, so the texts are padded to one length. Padding would be read as "
            "text: join the texts and cut them into samples of one length (quantize() does so, given tokenizer=)."
        )
    return ids_of(given["input_ids"])


def _stacked(rows: list[torch.Tensor]) -> torch.Tensor:
    """Samples, each ``[length]`` or ``[some, length]``, as one matrix."""
    rows = [row if row.dim() == 2 else row.reshape(1, -1) for row in rows]
    lengths = {row.shape[1] for row in rows}
    if len(lengths) > 1:
        raise QtutorError(
            f"token ids: samples of {min(lengths)} to {max(lengths)} tokens. All need one length: join them and cut "
            "the result with ids[: samples * length].reshape(samples, length)."
        )
    return torch.cat(rows)


def _described(given) -> str:
    if isinstance(given, list | tuple | set):
        inside = f" of {type(next(iter(given))).__name__}" if given else ""
        return f"a {type(given).__name__}{inside} with {len(given)} entries"
    return f"a {type(given).__name__} ({str(given)[:60]!r})"
