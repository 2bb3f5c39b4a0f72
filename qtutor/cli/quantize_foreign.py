"""`qtutor quantize SRC OUT --format gptq`, or `--target vllm`: a folder in another tool's format.

Before a text is read, the shapes show whether the format holds every layer and whether the engine accepts it. Unlike
our own folders, these are not written block by block: the whole model is in memory, and a run that was stopped starts
again from the beginning.
"""

import sys
import warnings

from qtutor.cli.quantize import prepared
from qtutor.formats.targets import Choice, layer_shapes, pick


def write(options) -> int:
    """Quantize in memory by the recipe that the options describe, and export."""
    import qtutor
    from qtutor.calibration.chat import has_template
    from qtutor.formats.taking import commands
    from qtutor.report import next_steps

    choices = []
    recipe, weights, tokenizer, calibration = prepared(options, lambda *given: choices.append(_choice(options, *given)))
    plan = qtutor.plan(weights, recipe, calibration, tokenizer)
    _check_holds(choices[0].format, plan.packed)
    told = as_text(plan, choices[0], options.target, weights.model)
    if options.plan:
        print(told)
        return 0
    print(told, file=sys.stderr, flush=True)
    model = qtutor.load(options.source, dtype="auto", device=options.device)[0]
    report = qtutor.quantize(model, plan.recipe, calibration, tokenizer=tokenizer)
    qtutor.export(model, options.out, choices[0].format, tokenizer, **choices[0].options)
    print(report)
    more = commands(options.out, choices[0].format, model)
    print(f"Written to {options.out}.\n\n{next_steps(options.out, options.source, has_template(tokenizer), more=more)}")
    return 0


def _choice(options, recipe, model) -> Choice:
    """The format, chosen by the target or named by the option."""
    if options.target is None:
        return Choice(options.format, {}, True, "")
    return pick(options.target, layer_shapes(model, recipe), recipe, options.format)


def _check_holds(form: str, packed) -> None:
    """Raise :class:`QtutorError` for a layer that the format cannot hold; packed: the model's shapes after packing.

    Warnings about the format come when it is written.
    """
    from qtutor.formats.foreign import packed_layers
    from qtutor.formats.taking import check_holds

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_holds(form, packed_layers(packed), packed)


def as_text(plan, choice: Choice, target: str | None, model) -> str:
    """A plan in the form for these formats: what is quantized, the format and its readers, bytes, memory."""
    lines = str(plan).splitlines()
    table = lines[: next(at for at, line in enumerate(lines) if line.startswith("Result: "))]
    reads = ""
    if target is not None:
        reads = f", which {target} reads ({choice.known})"
    floats = sum(parameter.nbytes for parameter in model.parameters())
    memory = (plan.memory + floats + plan.nbytes) / 1e6
    return "\n".join(
        [
            *table,
            f"Format: {choice.format}{reads}.",
            f"Result: about {plan.nbytes:,} bytes.",
            f"Memory: about {memory:,.0f} MB. For this format the whole model is in memory, and a run that is stopped "
            "begins anew.",
        ]
    )
