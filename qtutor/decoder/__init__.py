"""The embedded decoder: a small Llama that writes Python, the text it learned from, and its questions.

Corpus and questions: :mod:`.corpus`, :mod:`.tasks`; text as tokens: :mod:`.text`; training: :mod:`.training`; the
outliers of a large model: :mod:`.outliers`; what the decoder can and cannot do: ``weights/README.md``.
"""

from pathlib import Path

EMBEDDED = Path(__file__).parent / "weights"


def is_embedded(config) -> bool:
    """Whether a decoder's transformers config says that it was loaded from :data:`EMBEDDED`."""
    return str(config._name_or_path) == str(EMBEDDED)
