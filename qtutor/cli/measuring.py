"""The common parts of `qtutor eval` and `qtutor compare`: the text, the float decoder, numbers as cells and as JSON."""

import json
import math
import os
from dataclasses import asdict
from pathlib import Path

from qtutor.cli.source import check_source, load_source
from qtutor.errors import QtutorError

TEXT = "a text, or a .jsonl file of texts or conversations, to measure on (default: held-out code for the embedded "
TEXT += "decoder, else English and Python of ours)"


def add_measuring(sub) -> None:
    """Add the options of all commands that measure on a text."""
    sub.add_argument("--text", metavar="FILE", help=TEXT)
    sub.add_argument(
        "--tokens",
        type=int,
        metavar="N",
        help="tokens of the text to read (default: 16384 evenly spread, all of the held-out code)",
    )
    sub.add_argument("--window", type=int, metavar="N", help="tokens that are read at a time (default: 512)")
    sub.add_argument("--json", action="store_true", help="print JSON, and no table")


def check_measuring(options, sources: list[str]) -> None:
    """Before anything is loaded, refuse all that is already known to be wrong.

    sources: all models. They are compared, so their vocabularies must have one size, as far as the files show it.
    """
    from qtutor.calibration.text import check_text
    from qtutor.measure.texts import TOKENS, WINDOW

    window = WINDOW if options.window is None else options.window
    if window < 2:
        raise QtutorError(f"--window is {window}; it takes at least 2 tokens, one to read and one to predict.")
    tokens = TOKENS if options.tokens is None else options.tokens
    if tokens < 2:
        raise QtutorError(f"--tokens is {tokens}; it takes at least 2 tokens, one to read and one to predict.")
    for source in sources:
        check_source(source)
        if not os.path.lexists(source) and (source.count("/") > 1 or source.startswith((".", "/", "~"))):
            raise QtutorError(f"{source} does not exist. Name 'embedded', a folder, a file or a hub id (owner/name).")
    if options.text is not None:
        check_text(options.text, 2)
    found = {source: sizes_of(source) for source in sources}
    contexts = [context for _, context in found.values()]
    if None not in contexts:  # if one is not known, window_for checks when the model is loaded
        _check_tokens(tokens, min(window, *contexts))
    sizes = {source: size for source, (size, _) in found.items() if size is not None}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{source} {size:,}" for source, size in sizes.items())
        raise QtutorError(
            f"the vocabularies are of different sizes ({told}), so that nothing can be compared token by token: name "
            "models that were made of the same one."
        )


def _check_tokens(tokens: int, window: int) -> None:
    if tokens < window:
        raise QtutorError(f"--tokens is {tokens}, and one window takes {window}: measure on more.")


def sizes_of(source: str) -> tuple[int | None, int | None]:
    """The size of a decoder's vocabulary and the length of its context, from its config or file.

    ``None`` for a number that is not known here, as for a hub id.

    Files that cannot be read are reported when the decoder is loaded.
    """
    from qtutor.decoder import EMBEDDED
    from qtutor.formats.documents import read_json
    from qtutor.formats.gguf_files import file_in
    from qtutor.gguf.parts import read_whole

    file = file_in(source)
    if file is not None:
        metadata = read_whole(file).metadata
        tokens = metadata.get("tokenizer.ggml.tokens")
        context = metadata.get(f"{metadata.get('general.architecture')}.context_length")
        return len(tokens) if isinstance(tokens, list) else None, context if type(context) is int else None
    path = (EMBEDDED if source == "embedded" else Path(source)) / "config.json"
    config = read_json(path) if path.is_file() else {}
    found = [config.get(key) for key in ("vocab_size", "max_position_embeddings")]
    size, context = (value if type(value) is int else None for value in found)
    return size, context


def window_for(options, model, notes: list[str]) -> int:
    """Tokens in a window: --window, but at most the model's context. Raises if --tokens is less than one window."""
    from qtutor.measure.texts import TOKENS, WINDOW

    wanted = options.window or WINDOW
    context = getattr(model.config, "max_position_embeddings", None) or wanted
    if context < wanted:
        notes.append(
            f"The model's context is {context} tokens: the text is read in windows of that size, not {wanted}."
        )
    window, tokens = min(wanted, context), TOKENS if options.tokens is None else options.tokens
    if window < 2:
        raise QtutorError(f"the model's context is {context} tokens; one to read and one to predict are needed.")
    _check_tokens(tokens, window)
    return window


def text_for(options, tokenizer, window: int, model):
    """The :class:`qtutor.calibration.text.Text` to measure on, of tokens that the model embeds."""
    from qtutor.measure.generation import check_embedded
    from qtutor.measure.texts import text_of

    text = text_of(tokenizer, options.text, window, options.tokens)
    check_embedded(model, tokenizer, [int(text.token_ids.max())], "the text")
    return text


def check_same_tokens(text, first, second, names: tuple[str, str]) -> None:
    """Refuse two tokenizers for which the ids of ``text`` mean different tokens.

    The sizes may be equal by chance; each model would then be measured on another text.
    """
    ids = text.token_ids.unique().tolist()
    ours, theirs = (tokenizer.convert_ids_to_tokens(ids) for tokenizer in (first, second))
    differ = [(number, a, b) for number, a, b in zip(ids, ours, theirs, strict=True) if a != b]
    if differ:
        number, a, b = differ[0]
        raise QtutorError(
            f"{names[0]} and {names[1]} do not use the same tokens: number {number} is {a!r} for the first and "
            f"{b!r} for the second, and {len(differ):,} of the text's {len(ids):,} differ. Compare a model with the "
            "one that it was made of."
        )


def reference_for(options, text, model, tokenizer):
    """The float decoder FLOAT of --against; its vocabulary must be that of ``model``."""
    from qtutor.measure.against import check_comparable

    reference, its_tokenizer = load_source(options.against, options.device)
    check_comparable(model, reference)
    check_same_tokens(text, tokenizer, its_tokenizer, (options.source, options.against))
    return reference


def numbers(comparison) -> dict:
    """A comparison for JSON: its fields, the rise of perplexity, and the float model's under ``float_...``."""
    found = {name.replace("reference_", "float_"): value for name, value in asdict(comparison).items()}
    return found | {"loss_percent": comparison.loss_percent}


def error(value: float | None, digits: int, factor: float = 1) -> str:
    """A standard error as a cell; empty if there is none."""
    return "" if value is None else f"{factor * value:.{digits}f}"


def passes_of(token_ids, window: int) -> int:
    """About how many batches of windows there are."""
    from qtutor.measure.losses import BATCH

    return token_ids.numel() // (window * BATCH) + 1


def as_json(found) -> str:
    """JSON, in which numbers that JSON does not have (an infinite perplexity) are null."""

    def finite(value):
        if isinstance(value, dict):
            return {key: finite(inside) for key, inside in value.items()}
        if isinstance(value, list):
            return [finite(inside) for inside in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(found), indent=1, allow_nan=False)
