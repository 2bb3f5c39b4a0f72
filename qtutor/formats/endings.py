"""Settings of ``generation_config.json`` beyond a model's config, for instance that three tokens end a text, not one.

If the file is missing, transformers derives it from the config. So only settings that differ have to be kept.
"""

from torch import nn
from transformers import GenerationConfig

from qtutor.errors import QtutorError, one_line, warn
from qtutor.formats.documents import parse_json
from qtutor.formats.transformers_files import take_generation

VERSION = "transformers_version"


def generation_settings(model: nn.Module) -> dict:
    """The settings that cannot be derived from the config alone; empty for most models.

    Tokens beyond the vocabulary that would end a text are left out, with a warning: the model cannot write them, so
    nothing changes.
    """
    own = getattr(model, "generation_config", None)
    if own is None:
        return {}
    usual = GenerationConfig.from_model_config(model.config).to_dict()
    found = {key: value for key, value in own.to_dict().items() if value != usual.get(key)}
    found = {key: value for key, value in found.items() if not key.startswith("_") and key != VERSION}
    ends = found.get("eos_token_id")
    several = ends if isinstance(ends, list) else [] if ends is None else [ends]
    within = [number for number in several if type(number) is not int or number < model.config.vocab_size]
    if within != several:
        del found["eos_token_id"]
        warn(
            f"generation_config: eos_token_id is {one_line(str(ends), 80)}, and the vocabulary has "
            f"{model.config.vocab_size} tokens. Larger ids cannot be written and are left out."
        )
        if within:
            found["eos_token_id"] = within
    return found


def give_back(model: nn.Module, text: str | None, where: str) -> None:
    """Put settings, in the JSON text that was written, into ``model``. where: the file's name for :class:`QtutorError`.

    Only settings that :func:`~.transformers_files.take_generation` accepts from any checkpoint are used: others could
    name code.
    """
    if text is None:
        return
    settings = parse_json(text, where)
    _check_ends(settings.get("eos_token_id"), model.config.vocab_size, where)
    take_generation(model, settings, where)


def _check_ends(ends, vocabulary: int, where: str) -> None:
    """Tokens that end a text have to exist; otherwise it would not end, or there would be an error after it."""
    for number in ends if isinstance(ends, list) else [] if ends is None else [ends]:
        if type(number) is not int or not 0 <= number < vocabulary:
            raise QtutorError(
                f"{where}: eos_token_id is {one_line(str(ends), 80)}; expected token ids, 0 to {vocabulary - 1}. The "
                "file is damaged: export the model again."
            )
