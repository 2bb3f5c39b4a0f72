"""Measures of a decoder: ``qtutor.evaluate.perplexity(model, token_ids)`` and its like.

:mod:`.losses` compares distributions of next tokens, :mod:`.generation` looks at written text, :mod:`.distributions` at
weights and inputs. The names of the first two are looked up here when they are first used, so that a perplexity does
not wait for the questions and the corpus of the embedded decoder.
"""

import importlib

_WHERE = {
    "Comparison": "measure.losses",
    "ast_validity": "measure.generation",
    "compare": "measure.losses",
    "first_body": "measure.generation",
    "generate": "measure.generation",
    "generate_batch": "measure.generation",
    "held_out_tokens": "decoder.text",
    "is_python": "measure.generation",
    "model_bytes": "measure.losses",
    "perplexity": "measure.losses",
    "task_accuracy": "measure.generation",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"qtutor.evaluate has no name {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"qtutor.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
