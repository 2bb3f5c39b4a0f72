"""Measures of a decoder, such as ``qtutor.evaluate.perplexity(model, token_ids)``.

:mod:`.losses` has perplexity and bytes, :mod:`.against` compares distributions of next tokens with the float model's,
:mod:`.texts` provides the texts for both. :mod:`.generation`, :mod:`.chat` and :mod:`.speed` look at written text,
:mod:`.distributions` at weights and inputs. The names of all but the last are looked up here when they are first used,
so that a perplexity does not wait for the questions and the corpus of the embedded decoder.
"""

import importlib

_WHERE = {
    "Comparison": "measure.against",
    "Measured": "measure.losses",
    "answer": "measure.chat",
    "ast_validity": "measure.generation",
    "bits_per_weight": "measure.losses",
    "compare": "measure.against",
    "cost_of_cache": "measure.against",
    "cost_of_int8_inputs": "measure.against",
    "first_body": "measure.generation",
    "generate": "measure.generation",
    "generate_batch": "measure.generation",
    "held_out_tokens": "decoder.text",
    "is_python": "measure.generation",
    "model_bytes": "measure.losses",
    "model_weights": "measure.losses",
    "perplexity": "measure.losses",
    "perplexity_with_error": "measure.losses",
    "task_accuracy": "measure.generation",
    "text_of": "measure.texts",
    "tokens_per_second": "measure.speed",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"qtutor.evaluate has no name {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"qtutor.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
