"""The embedded decoder: a small Llama that writes Python, the text it learned from, and what it is asked.

Corpus and questions: :mod:`.corpus`, :mod:`.tasks`; text as tokens: :mod:`.text`; training: :mod:`.training`; the
outliers of a large model: :mod:`.outliers`; what it is and is not: ``weights/README.md``.
"""

from pathlib import Path

EMBEDDED = Path(__file__).parent / "weights"
