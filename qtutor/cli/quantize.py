"""`qtutor quantize`: a recipe from the options, a text to calibrate with, and a folder or a GGUF file as the result.

:mod:`.quantize_foreign` writes other tools' formats, :mod:`.quantize_gguf` writes GGUF files.
"""

import sys
from pathlib import Path

from qtutor.cli.parsing import add_source, nbytes, number
from qtutor.cli.source import check_device, check_rounded, check_source
from qtutor.cli.terminal import paragraph
from qtutor.errors import QtutorError
from qtutor.formats import ENGINES, FORMATS

EXAMPLES = [
    "quantize embedded out --bits 4 --group-size 64",
    "quantize embedded out --bits 3 --symmetric --clip mse",
    "quantize path/to/llama out --method gptq --calibration text.txt",
    "quantize path/to/llama out --method gptq --calibration text.txt --plan",
    "quantize path/to/llama out --method gptq --target-size 90MB",
    "quantize path/to/llama out --bits 8 --group-size -1 --keep '*.down_proj,model.layers.0.*'",
    "quantize path/to/llama out --method gptq --symmetric --target vllm --plan",
    "quantize path/to/llama out --method awq --group-size 128 --format awq",
    "quantize path/to/llama out --method gptq --levels mxfp4 --target vllm",
    "quantize embedded out.gguf --type Q4_K_M",
    "quantize path/to/llama out.gguf --target-size 80MB --plan",
    "quantize path/to/llama out.gguf --method awq --calibration text.txt",
    "quantize path/to/llama out.gguf --type IQ4_XS --imatrix imatrix.gguf",
]
MOST = 10**6  # samples, and tokens of each: the embedded decoder's text has no end
# Options of a recipe that --format gguf does not accept, and the methods to which each belongs (none: all).
OF_A_RECIPE = (
    *("levels", "bits", "target_size", "group_size", "symmetric", "clip", "keep", "embeddings", "lm_head"),
    *("act_order", "damping"),
)


def add_to(command) -> None:
    """Add ``quantize`` to the commands; ``command`` creates its parser."""
    sub = command(quantize, "quantize", "Quantize a decoder and write it to a folder, or to a GGUF file.", EXAMPLES)
    default = "(default: %(default)s)"
    add_source(sub)
    sub.add_argument("out", metavar="OUT", help="the folder to write; or a .gguf file")
    methods = "rtn, hqq, sinq, awq, gptq, awq+gptq, nf4, fp4, int8, fp8, mxfp4 or nvfp4; "
    methods += "with gguf: awq scales weights before they are rounded"
    sub.add_argument("--method", type=str.lower, default="rtn", help=f"{methods} {default}")
    levels = "what rtn, awq and gptq round to: integers, fp8, mxfp4 or nvfp4 (default: integers)"
    sub.add_argument("--levels", type=str.lower, metavar="LEVELS", help=levels)
    text = "a text for awq and gptq to read, or a .jsonl file of texts or conversations (default: our English and "
    text += "Python; the embedded decoder has its own); with gguf also for importance"
    sub.add_argument("--calibration", metavar="FILE", help=text)
    sub.add_argument("--samples", type=int, metavar="N", help="pieces of that text (default: 128)")
    sub.add_argument("--length", type=int, metavar="N", help="tokens in each piece (default: 256, or the context)")
    mean = "bits of a weight, 2 to 8; 3.5 is a mean, and layers that matter more get more (default: 4); "
    mean += "with gguf always a mean, scales included"
    sub.add_argument("--bits", type=number, help=mean)
    size = "in place of --bits: the size of the result, like 90MB; layers that matter more get more bits"
    sub.add_argument("--target-size", type=nbytes, metavar="SIZE", help=size)
    groups = "weights that share a scale; -1: a scale per channel, 0: one per tensor"
    sub.add_argument("--group-size", type=int, metavar="N", help=f"{groups} (default: 64, or the method's own)")
    sub.add_argument("--symmetric", action="store_true", help="a grid around zero, without zero points")
    clip = "narrow each group's range for the smallest error of its weights (mse) or of the layer's output; none: never"
    clips = ["none", "mse", "output"]
    sub.add_argument("--clip", type=str.lower, choices=clips, help=f"{clip} (default: the method's own)")
    sub.add_argument("--keep", metavar="PATTERNS", help="layers that stay in float, like '*.down_proj,*.0.mlp.*'")
    sub.add_argument("--embeddings", action="store_true", help="quantize the embeddings, too")
    sub.add_argument("--lm-head", action="store_true", help="quantize the output matrix, too")
    order = "the order in which gptq rounds columns: none, columns or groups (default: groups)"
    sub.add_argument("--act-order", type=str.lower, metavar="ORDER", help=order)
    sub.add_argument("--damping", type=float, metavar="X", help="how much less gptq trusts the text (default: 0.01)")
    formats = "the layout of OUT (default: gguf if OUT ends in .gguf, else qtutor)"
    sub.add_argument("--format", type=str.lower, choices=list(FORMATS), help=formats)
    target = "the engine that is to read OUT: picks the format, and checks the recipe and every layer before the work"
    sub.add_argument("--target", type=str.lower, choices=list(ENGINES), help=target)
    sub.add_argument("--type", help="with gguf: llama.cpp's Q4_K_M (the default), Q5_K_S, Q8_0 ...")
    force = "with gguf: replace the file OUT even if qtutor did not write it"
    sub.add_argument("--force", action="store_true", help=force)
    again = "go on even if SRC is a GGUF file whose weights were rounded before"
    sub.add_argument("--allow-requantize", action="store_true", help=again)
    plan = "say what would be done and how many bytes it takes, and stop there"
    sub.add_argument("--plan", action="store_true", help=plan)
    sub.add_argument("--imatrix", metavar="FILE", help="with gguf: an importance matrix, as llama-imatrix writes it")


def quantize(options) -> int:
    """``qtutor quantize``: check the options before anything is loaded, then write a folder or a GGUF file."""
    gguf = Path(options.out).suffix.lower() == ".gguf" or options.target == "llama.cpp"
    if options.format is None and (gguf or options.target is None):  # others read several: it is chosen later
        options.format = "gguf" if gguf else "qtutor"
    for name in ("samples", "length"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise QtutorError(f"--{name} is {getattr(options, name)}; it has to be at least 1.")
        if getattr(options, name) is not None and getattr(options, name) > MOST:
            raise QtutorError(
                f"--{name} is {getattr(options, name):,}; more than {MOST:,} would never finish. Take fewer."
            )
    if options.bits is not None and options.target_size is not None:
        raise QtutorError("--bits and --target-size both say how large the result gets: leave one out.")
    check_source(options.source)
    check_rounded(options.source, options.allow_requantize or options.plan)
    check_device(options.device)
    if options.target is not None and options.format is not None:
        from qtutor.formats.targets import ways_into

        ways_into(options.target, options.format)  # refuses a format that the target does not read
    if options.format == "gguf":
        from qtutor.cli.quantize_gguf import write

        return write(options)
    if options.format == "qtutor":
        return write_folder(options)
    from qtutor.cli.quantize_foreign import write

    return write(options)


def write_folder(options) -> int:
    """Quantize by the recipe that the options describe, and write a folder of ours."""
    import qtutor
    from qtutor.calibration.chat import has_template
    from qtutor.report import next_steps

    recipe, weights, tokenizer, calibration = prepared(options)
    if options.plan:
        print(qtutor.plan(weights, recipe, calibration, tokenizer))
        return 0
    report = qtutor.quantize_to(weights, options.out, recipe, calibration, tokenizer, tell=_tell)
    print(report)  # only after writing: the reader of stdout may have closed it
    print(f"Written to {options.out}.\n\n{next_steps(options.out, options.source, has_template(tokenizer))}")
    return 0


def prepared(options, check=lambda recipe, model: None):
    """``(recipe, weights, tokenizer, calibration)``, after OUT and the model were checked.

    check(recipe, model): called with a model of shapes without weights, before a text is read.
    """
    from qtutor import budget
    from qtutor.cli.calibrating import calibration_of, check_calibration
    from qtutor.formats.streamed import opened

    for name, what in (("type", "one"), ("imatrix", "an importance matrix")):
        if getattr(options, name):
            raise QtutorError(
                f"--{name} {getattr(options, name)} is {what} of llama.cpp's: it goes with --format gguf, or an OUT "
                "that ends in .gguf."
            )
    if Path(options.out).suffix.lower() == ".gguf":
        form = f"--format {options.format}" if options.format else f"--target {options.target}"
        raise QtutorError(f"{form} writes a folder, but {options.out} is named like a file: leave the option out.")
    if options.force:
        raise QtutorError(
            "--force replaces a file, and goes with --format gguf. A folder that holds other files is never "
            "replaced: move them elsewhere, or choose another folder."
        )
    recipe = recipe_of(options)
    check_calibration(options, recipe.needs_calibration, f"--method {options.method}")
    check_out(options, min(budget.CHOICES) if recipe.is_mixed else recipe.grid.bits)
    weights, tokenizer = opened(options.source, check_device(options.device))
    check(recipe, weights.model)
    calibration = calibration_of(options, weights.model, tokenizer) if recipe.needs_calibration else None
    return recipe, weights, tokenizer, calibration


def _tell(what) -> None:
    """Print a plan as it is, a sentence as a paragraph; on stderr, like the progress bar."""
    if isinstance(what, str):
        paragraph(f"qtutor: {what}")
    else:
        print(what, file=sys.stderr, flush=True)


def check_out(options, bits: float, model=None) -> None:
    """Refuse an OUT that could not be written, before SRC is loaded.

    With the sizes of the ``model``, this is checked again before it is quantized, because a hub id has no headers here.
    """
    from qtutor.decoder import EMBEDDED
    from qtutor.files.target import least_bytes, tensors_in
    from qtutor.files.unfinished import bytes_kept
    from qtutor.formats import target
    from qtutor.formats.gguf_files import located

    source = EMBEDDED if options.source == "embedded" else located(options.source)
    gguf = options.format == "gguf"
    tensors = tensors_in(source)
    if model is not None:
        tensors = ((name, tuple(weight.shape), weight.nbytes) for name, weight in model.named_parameters())
    read = [name for name in (source, options.calibration, options.imatrix) if name]
    need = least_bytes(tensors, bits, everywhere=gguf) - (0 if gguf else bytes_kept(options.out))
    form = options.format or "compressed-tensors"  # other formats for engines are written to the same places
    target(options.out, form, sources=read, need=need, **({"overwrite": options.force} if gguf else {}))


def recipe_of(options):
    """The :class:`qtutor.Recipe` that the options describe; a method's own options are refused with another one."""
    import qtutor
    from qtutor.recipe import METHODS

    if options.keep is not None and not _patterns(options.keep):
        raise QtutorError("--keep names no layer: give patterns with commas between them, like '*.down_proj,*.o_proj'.")
    chosen = {name: getattr(options, name) for name in OF_A_RECIPE if name != "keep"} | {"method": options.method}
    chosen["layers"] = {pattern: "float" for pattern in _patterns(options.keep or "")}
    recipe = qtutor.Recipe(**{name: value for name, value in chosen.items() if value is not None})
    if not METHODS[options.method].rounder.factors:
        for name in ("act_order", "damping"):
            if getattr(options, name) is not None:
                raise QtutorError(
                    f"--{name.replace('_', '-')} says how gptq rounds, and --method {options.method} rounds "
                    "differently: leave it out, or choose gptq or awq+gptq."
                )
    return recipe


def _patterns(text: str) -> list[str]:
    return [pattern.strip() for pattern in text.split(",") if pattern.strip()]
