"""The command line: `qtutor learn | progress | quantize | generate | eval | inspect`.

torch and transformers are imported inside the commands that need them, so that --help and inspect do not wait for them.
Bad input ends in one paragraph on stderr and exit status 2, an interrupt in one line and 130 (Ctrl-C), 143 (SIGTERM) or
129 (SIGHUP).
"""

import argparse
import os
import sys
import textwrap
from pathlib import Path

from qtutor.errors import QtutorError, escaped
from qtutor.files.stopping import signals_raise

SOURCE = "'embedded' (the decoder that comes with qtutor), a folder, a hub id, or what 'qtutor quantize' wrote"


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = build_parser().parse_args(argv)
    try:
        with signals_raise():
            return options.run(options)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `qtutor inspect FILE | head` is no error
        return 0
    except (QtutorError, OSError) as error:
        text = escaped(" ".join(f"qtutor: {error}".split()))  # a file's name may hold characters that steer a terminal
        print(textwrap.fill(text, 110, break_long_words=False, break_on_hyphens=False), file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print("\nqtutor: stopped.", file=sys.stderr)
        return getattr(stopped, "status", 130)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands. It imports nothing heavy, so that --help and mistakes are answered at once."""
    parser = _parser(
        argparse.ArgumentParser,
        "Learn how language models are quantized, and quantize them.",
        ["learn", "quantize embedded out --bits 3", "eval out", "generate out 'def mean(values):'", "inspect out"],
        prog="qtutor",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(run, name, description, examples):
        sub = _parser(commands.add_parser, description, examples, name=name, help=description)
        sub.set_defaults(run=run)
        return sub

    _course_commands(command)
    _quantize_command(command)
    _decoder_commands(command)
    return parser


def _course_commands(command) -> None:
    sub = command(
        learn,
        "learn",
        "Copy the chapters into a folder of yours and open JupyterLab on the first.",
        ["learn", "learn ~/quantization --no-browser", "learn --no-start    # only copy, or bring up to date"],
    )
    sub.add_argument("folder", nargs="?", default="qtutor-course", help="your workspace (default: %(default)s)")
    sub.add_argument("--no-browser", action="store_true", help="print the address, open no browser")
    sub.add_argument("--no-start", action="store_true", help="do not start JupyterLab")

    examples = ["progress", "progress ~/quantization"]
    sub = command(progress, "progress", "Show the exercises, and which of them you have done.", examples)
    sub.add_argument("folder", nargs="?", help="your workspace (default: the one you are in, or qtutor-course)")


def _quantize_command(command) -> None:
    sub = command(
        quantize,
        "quantize",
        "Quantize a decoder and write it to a folder.",
        [
            "quantize embedded out --bits 4 --group-size 64",
            "quantize embedded out --bits 3 --symmetric --clip mse",
            "quantize path/to/llama out --method gptq --calibration text.txt",
            "quantize path/to/llama out --bits 8 --group-size -1",
            "quantize embedded out.gguf --format gguf --type Q4_K_M",
            "quantize path/to/llama out.gguf --format gguf --method awq --calibration text.txt",
        ],
    )
    default = "(default: %(default)s)"
    sub.add_argument("source", metavar="SRC", help=SOURCE)
    sub.add_argument("out", metavar="OUT", help="the folder to write; a .gguf file for that format")
    methods = "rtn, awq, gptq, awq+gptq, nf4, fp4 or int8; with gguf: awq scales weights before they are rounded"
    sub.add_argument("--method", default="rtn", help=f"{methods} {default}")
    sub.add_argument(
        "--calibration",
        metavar="FILE",
        help="a text file for awq and gptq to read (the embedded decoder has its own); with gguf also for importance",
    )
    sub.add_argument("--bits", type=int, default=4, help=f"bits of a weight, 2 to 8 {default}")
    groups = "weights that share a scale; -1: a scale per channel, 0: one per tensor"
    sub.add_argument("--group-size", type=int, default=64, help=f"{groups} {default}")
    sub.add_argument("--symmetric", action="store_true", help="a grid around zero, without zero points")
    clip = "narrow each group's range to the least error of its weights (mse) or of the layer's output; none: never"
    sub.add_argument("--clip", choices=["none", "mse", "output"], help=f"{clip} (default: as the method has it)")
    sub.add_argument("--format", choices=["qtutor", "gguf"], default="qtutor", help=f"the layout of OUT {default}")
    sub.add_argument("--type", help="with --format gguf: llama.cpp's Q4_K_M (the default), Q5_K_S, Q8_0 ...")
    force = "with --format gguf: replace the file OUT even if qtutor did not write it"
    sub.add_argument("--force", action="store_true", help=force)
    sub.set_defaults(parser=sub)


def _decoder_commands(command) -> None:
    sub = command(
        generate,
        "generate",
        "Let a decoder continue a text.",
        ["generate embedded 'def mean(values):'", "generate out '>>> 37 + 48' --max-new-tokens 8"],
    )
    sub.add_argument("source", metavar="SRC", help=SOURCE)
    sub.add_argument("text", help="what the decoder continues")
    sub.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="(default: %(default)s)")

    description = "Measure a decoder: perplexity, bytes, valid Python, right answers."
    sub = command(evaluate, "eval", description, ["eval embedded", "eval out", "eval out.gguf"])
    sub.add_argument("source", metavar="SRC", help=SOURCE)

    description = "Show what a file or folder holds: tensors, their bytes, the recipe; or a block of a GGUF file."
    block = "inspect model.gguf --tensor blk.0.attn_q.weight --block 3"
    sub = command(inspect, "inspect", description, ["inspect out", "inspect out/model.safetensors", block])
    sub.add_argument("file", metavar="FILE", help="a .safetensors or .gguf file, or a folder with some")
    sub.add_argument("--tensor", metavar="NAME", help="a tensor of a GGUF file: show one of its blocks, byte by byte")
    sub.add_argument("--block", type=int, metavar="N", help="which block of the tensor, counted from 0 (default: 0)")


def _parser(make, description: str, examples: list[str], **arguments) -> argparse.ArgumentParser:
    epilog = "examples:\n" + "\n".join(f"  qtutor {example}" for example in examples)
    formatter = argparse.RawDescriptionHelpFormatter
    return make(description=description, epilog=epilog.replace("%", "%%"), formatter_class=formatter, **arguments)


def learn(options) -> int:
    """``qtutor learn``: a workspace with the chapters, and JupyterLab in it."""
    from qtutor.course import workspace

    report = workspace.make(options.folder)
    print(report)
    if options.no_start:
        return 0
    return workspace.start(report.folder, browser=not options.no_browser)


def progress(options) -> int:
    """``qtutor progress``: which exercises of each chapter are done."""
    from qtutor.course import progress_table, workspace

    here = workspace.find()
    print(progress_table(options.folder or here or workspace.DEFAULT_FOLDER))
    return 0


def quantize(options) -> int:
    """``qtutor quantize``: a float decoder to a folder of ours or a GGUF file, with the report."""
    import qtutor
    from qtutor.calibration.text import calibration_text

    if options.format == "gguf":
        return write_gguf(options)
    if options.type:
        raise QtutorError(f"--type {options.type} is one of llama.cpp's: it goes with --format gguf.")
    if options.force:
        raise QtutorError(
            "--force replaces a file, and goes with --format gguf. A folder in which files of others lie is never "
            "replaced: move them elsewhere, or choose another folder."
        )
    recipe = qtutor.Recipe(
        method=options.method,
        bits=options.bits,
        group_size=options.group_size,
        symmetric=options.symmetric,
        clip=options.clip or "auto",
    )
    check_out(options, recipe.grid.bits)
    model, tokenizer = qtutor.load(options.source, dtype="auto")  # what is not quantized is written in its own 16 bits
    check_out(options, recipe.grid.bits, model)
    calibration = calibration_text(options.calibration, tokenizer) if options.calibration else None
    report = qtutor.quantize(model, recipe, calibration=calibration)
    qtutor.export(model, options.out, format=options.format, tokenizer=tokenizer)
    print(report)  # once it is written: whoever reads this may have gone
    print(f"Written to {options.out}. Next: qtutor eval {options.out}")
    return 0


def check_out(options, bits: float, model=None) -> None:
    """Refuse an OUT that could not be written, before SRC is loaded; or, with the sizes of the ``model``, before it is
    quantized: what a hub id names has no headers here.
    """
    from qtutor.decoder import EMBEDDED
    from qtutor.files.target import least_bytes, tensors_in
    from qtutor.formats import target

    source = EMBEDDED if options.source == "embedded" else options.source
    gguf = options.format == "gguf"
    tensors = tensors_in(source)
    if model is not None:
        tensors = ((name, tuple(weight.shape), weight.nbytes) for name, weight in model.named_parameters())
    read = [source, options.calibration] if options.calibration else [source]
    need = least_bytes(tensors, bits, everywhere=gguf)
    target(options.out, options.format, sources=read, need=need, **({"overwrite": options.force} if gguf else {}))


def write_gguf(options) -> int:
    """GGUF's types say how to round; what a recipe would say is refused, not ignored. But AWQ can come before it."""
    import qtutor
    from qtutor.calibration.text import calibration_text
    from qtutor.decoder.text import calibration_tokens
    from qtutor.formats.gguf import DEFAULT
    from qtutor.gguf import TYPES, imatrix
    from qtutor.gguf.mixes import find_mix
    from qtutor.methods.scaling import fold_model

    awq = options.method == "awq"
    if options.method not in ("rtn", "awq"):
        raise QtutorError(
            f"--method {options.method} does not go with --format gguf, whose --type says how weights are rounded: "
            "leave it out, or choose awq, which scales weights before they are."
        )
    for name in ("bits", "group_size", "symmetric", "clip"):
        if getattr(options, name) != options.parser.get_default(name):
            raise QtutorError(
                f"--{name.replace('_', '-')} does not go with --format gguf, whose --type says how weights are "
                "rounded: leave it out."
            )
    if awq and not options.calibration and options.source != "embedded":
        raise QtutorError("--method awq looks at the layers' inputs and needs text: name a file with --calibration.")
    bits = TYPES[find_mix(options.type or DEFAULT).base].bits_per_weight
    check_out(options, bits)
    model, tokenizer = qtutor.load(options.source, dtype="auto")
    check_out(options, bits, model)
    tokens = importance = None
    if options.calibration:
        tokens = calibration_text(options.calibration, tokenizer)
    elif awq:
        tokens = calibration_tokens()
    if awq:
        fold_model(model, tokens)
    if tokens is not None:
        importance = imatrix.importance(model, tokens, options.calibration or "qtutor.decoder.text")
    chosen = {"type": options.type, "importance": importance, "overwrite": options.force}
    path = qtutor.export(model, options.out, format="gguf", tokenizer=tokenizer, **chosen)
    print(f"Written to {path}, {path.stat().st_size:,} bytes. Next: qtutor eval {path}, or llama-cli -m {path}")
    return 0


def generate(options) -> int:
    """``qtutor generate``: how a model goes on with a prompt."""
    if options.max_new_tokens < 1:
        raise QtutorError(f"--max-new-tokens is {options.max_new_tokens}; it has to be at least 1.")
    import qtutor

    model, tokenizer = qtutor.load(options.source)
    print(qtutor.generate(model, tokenizer, options.text, max_new_tokens=options.max_new_tokens))
    return 0


def evaluate(options) -> int:
    """``qtutor eval``: perplexity, size, and how well a model writes functions and answers questions."""
    import qtutor
    from qtutor.loading import weight_bytes

    model, tokenizer = qtutor.load(options.source)
    tokens = qtutor.evaluate.held_out_tokens(tokenizer)
    rows = [
        ("perplexity, held-out code", f"{qtutor.perplexity(model, tokens):.3f}"),
        ("bytes of the weights", f"{weight_bytes(options.source, model):,}"),
        ("functions ast.parse accepts", f"{qtutor.evaluate.ast_validity(model, tokenizer, count=40):.0%}"),
    ]
    accuracy = qtutor.evaluate.task_accuracy(model, tokenizer, count=50)
    rows += [(f"answers right, {kind}", f"{share:.0%}") for kind, share in accuracy.items()]
    from qtutor.inspection import print_table

    print_table(("measure", options.source), rows)
    return 0


def inspect(options) -> int:
    """``qtutor inspect``: what a checkpoint holds."""
    from qtutor import inspection

    inspection.show(Path(options.file), options.tensor, options.block)
    return 0


if __name__ == "__main__":
    sys.exit(main())
