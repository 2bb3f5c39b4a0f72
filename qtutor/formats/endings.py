"""What ``generation_config.json`` says beyond a model's config, for instance that three tokens end a text, not one.

transformers makes it out of the config where there is none, so only what differs has to be kept.
"""

import json

from torch import nn
from transformers import GenerationConfig

from qtutor.errors import QtutorError

VERSION = "transformers_version"


def generation_settings(model: nn.Module) -> dict:
    """The settings that the config alone would not give back; empty for most models."""
    own = getattr(model, "generation_config", None)
    if own is None:
        return {}
    usual = GenerationConfig.from_model_config(model.config).to_dict()
    found = {key: value for key, value in own.to_dict().items() if value != usual.get(key)}
    return {key: value for key, value in found.items() if not key.startswith("_") and key != VERSION}


def give_back(model: nn.Module, text: str | None, where: str) -> None:
    """Put settings, JSON as it was written, into ``model``. where: names the file in :class:`QtutorError`."""
    if text is None:
        return
    try:
        settings = json.loads(text)
        if not isinstance(settings, dict):
            raise TypeError(f"{type(settings).__name__}, not settings by name")
        usual = GenerationConfig.from_model_config(model.config).to_dict()
        model.generation_config = GenerationConfig.from_dict(usual | settings)
    except (ValueError, TypeError, AttributeError) as error:
        raise QtutorError(f"{where} is damaged ({error}): export the model again.") from None
    _check_ends(model, where)


def _check_ends(model: nn.Module, where: str) -> None:
    """Ends of a text have to be tokens, or it would not end, or fail after it was written."""
    ends = model.generation_config.eos_token_id
    for number in ends if isinstance(ends, list) else [] if ends is None else [ends]:
        if type(number) is not int or not 0 <= number < model.config.vocab_size:
            raise QtutorError(
                f"{where}: eos_token_id is {ends}; expected token ids, 0 to {model.config.vocab_size - 1}. The file is "
                "damaged: export the model again."
            )
