"""The calibration text of a method: which file, how much of it, and whether the method reads any."""

from qtutor.calibration.text import Text, check_text, text_in
from qtutor.cli.terminal import paragraph
from qtutor.errors import QtutorError
from qtutor.guards.ids import LENGTH, SAMPLES

MATCHED = "Text like what the model will read does better: name some with --calibration."


def check_calibration(options, needed: bool, what: str) -> None:
    """Before a model is loaded, refuse a file that is no text, and one that no method reads.

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


def calibration_of(options, model, tokenizer, always: bool = False):
    """Token ids int64 ``[samples, length]`` as the options say, or ``None`` if the method may use its own default.

    always: for the embedded decoder, return its own text if no other is named. For any other model, the built-in text
    is used. Samples are cut to the model's context. The number of tokens and the name of the text are printed.
    """
    from qtutor.decoder import is_embedded
    from qtutor.measure.generation import check_embedded

    _check_float(model)
    if options.calibration is None and is_embedded(model.config):
        if not always and options.samples is None and options.length is None:
            return None
        return _of_the_embedded_decoder(options, model)
    text = _text(options, model, tokenizer)
    check_embedded(model, tokenizer, [int(text.token_ids.max())], "the calibration text")
    print(f"Calibration: {text.told}." + (f" {MATCHED}" if options.calibration is None else ""), flush=True)
    return text.token_ids


def _check_float(model) -> None:
    """Refuse a model that is quantized already, before a text is read for it."""
    from qtutor.runtime.linear import QuantWeight

    if any(isinstance(module, QuantWeight) for module in model.modules()):
        raise QtutorError("the model is quantized already: name the float checkpoint that it was made of.")


def _text(options, model, tokenizer) -> Text:
    length, samples = _cut(options.length or LENGTH, model), options.samples or SAMPLES
    if options.calibration is not None:
        return text_in(options.calibration, tokenizer, length, samples)
    from qtutor.calibration.builtin import builtin_calibration

    return builtin_calibration(tokenizer, length, samples)


def _of_the_embedded_decoder(options, model):
    from qtutor.decoder.text import calibration_tokens

    asked = {"samples": options.samples, "length": options.length and _cut(options.length, model)}
    return calibration_tokens(**{name: value for name, value in asked.items() if value is not None})


def _cut(length: int, model) -> int:
    """``length``, or the model's context if that is shorter; then a message says so."""
    context = getattr(model.config, "max_position_embeddings", None) or length
    if context < length:
        paragraph(
            f"qtutor: the model's context is {context} tokens, so samples have {context} tokens and not {length}."
        )
    return min(context, length)
