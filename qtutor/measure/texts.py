"""The text that a decoder is measured on: a file of yours, or by itself what no calibration of ours has read.

The embedded decoder, and what was quantized from it, is measured on Python that it never saw
(:func:`qtutor.evaluate.held_out_tokens`), any other on the built-in English and Python
(:mod:`qtutor.calibration.builtin`). Perplexities of models with different tokenizers cannot be compared, whatever the
text: their tokens are not the same.
"""

from qtutor.calibration.builtin import builtin_held_out
from qtutor.calibration.text import Text, text_in
from qtutor.errors import QtutorError

WINDOW = 512
TOKENS = 16_384  # enough for a KL divergence to some per cent, in a minute or two for a small model


def text_of(tokenizer, file=None, window: int = WINDOW, tokens: int | None = None) -> Text:
    """Token ids to measure on, int64 ``[windows, window]`` or ``[count]``, and what they are of, in words.

    file: a text, or a .jsonl file of texts and conversations (:func:`qtutor.calibration.text.text_in`), of which
    windows are taken that lie evenly spread. tokens: at most so many; by itself :data:`TOKENS`, of the embedded
    decoder's text all. Raises :class:`QtutorError` for a file that is no such text or shorter than one window.
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
    """Whether a tokenizer has the vocabulary of the embedded decoder, whatever file it came out of."""
    from qtutor.decoder import EMBEDDED
    from qtutor.formats.checkpoint import tokenizer as tokenizer_in

    return tokenizer.get_vocab() == tokenizer_in(EMBEDDED).get_vocab()
