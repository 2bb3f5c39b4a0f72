"""The text that a decoder is measured on: a file of yours, or by default a text that was not used for calibration.

The embedded decoder, and any model quantized from it, is measured on Python that it never saw
(:func:`qtutor.evaluate.held_out_tokens`). All other decoders are measured on the built-in English and Python
(:mod:`qtutor.calibration.builtin`). Perplexities of models with different tokenizers cannot be compared, whatever the
text: their tokens are not the same.
"""

from qtutor.calibration.builtin import builtin_held_out
from qtutor.calibration.text import Text, text_in
from qtutor.errors import QtutorError

WINDOW = 512
TOKENS = 16_384  # enough for a KL divergence to some per cent, in a minute or two for a small model


def text_of(tokenizer, file=None, window: int = WINDOW, tokens: int | None = None) -> Text:
    """Token ids to measure on, int64 ``[windows, window]`` or ``[count]``, and a description of the text.

    file: a text, or a .jsonl file of texts and conversations (:func:`qtutor.calibration.text.text_in`), from which
    evenly spread windows are taken. tokens: the most tokens to use; by default :data:`TOKENS`, or for the embedded
    decoder all of its text. Raises :class:`QtutorError` for a file that is no such text or is shorter than one window.
    """
    if tokens is not None and tokens < window:
        raise QtutorError(f"tokens = {tokens}: one window has {window}. Measure on more, or take a smaller window.")
    windows = (tokens or TOKENS) // window
    if file is not None:
        return text_in(file, tokenizer, window, windows)
    if not has_embedded_vocabulary(tokenizer):
        return builtin_held_out(tokenizer, window, windows)
    from qtutor.decoder.text import held_out_tokens

    ids = held_out_tokens(tokenizer, limit=tokens)
    return Text(ids, f"{len(ids):,} tokens of held-out code")


def has_embedded_vocabulary(tokenizer) -> bool:
    """Whether a tokenizer has the vocabulary of the embedded decoder, whichever file it came from."""
    from qtutor.decoder import EMBEDDED
    from qtutor.formats.checkpoint import tokenizer as tokenizer_in

    return tokenizer.get_vocab() == tokenizer_in(EMBEDDED).get_vocab()
