"""The text that a method reads: which file, how much of it, and whether the method reads any."""

from qtutor.calibration.text import LENGTH, SAMPLES, calibration_text, check_text
from qtutor.cli.terminal import paragraph
from qtutor.errors import QtutorError


def check_calibration(options, needed: bool, what: str) -> None:
    """Refuse before a model is loaded: a file that is no text, none where one is needed, and one that nothing reads.

    what: the option that decides whether text is read.
    """
    for name in ("calibration", "samples", "length"):
        if getattr(options, name) is not None and not needed:
            raise QtutorError(
                f"--{name} {getattr(options, name)}: {what} looks at weights alone and reads no text. Leave it out, or "
                "choose a method that reads some, like awq or gptq."
            )
    if options.calibration is not None:
        check_text(options.calibration, 1)
    elif needed and options.source != "embedded":
        raise QtutorError(f"{what} looks at the layers' inputs and needs text: name a file with --calibration.")


def calibration_of(options, model, tokenizer, always: bool = False):
    """Token ids int64 ``[samples, length]`` that the options ask for, or ``None`` for what a method takes by itself.

    always: of the embedded decoder its own text, where no other is named. Samples are cut to the model's context.
    """
    if options.calibration is None:
        if not always and options.samples is None and options.length is None:
            return None
        return _of_the_embedded_decoder(options, model)
    length = _cut(options.length or LENGTH, model)
    return calibration_text(options.calibration, tokenizer, length, options.samples or SAMPLES)


def _of_the_embedded_decoder(options, model):
    from qtutor.decoder.text import calibration_tokens

    asked = {"samples": options.samples, "length": options.length and _cut(options.length, model)}
    return calibration_tokens(**{name: value for name, value in asked.items() if value is not None})


def _cut(length: int, model) -> int:
    """``length``, or the model's context, which is told."""
    context = getattr(model.config, "max_position_embeddings", None) or length
    if context < length:
        paragraph(
            f"qtutor: the model's context is {context} tokens, so samples have {context} tokens and not {length}."
        )
    return min(context, length)
