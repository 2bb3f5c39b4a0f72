"""The command line: `qtutor learn | progress | quantize | generate | eval | inspect`.

torch and transformers are imported inside the commands that need them, so that --help and inspect do not wait for them.
Bad input ends in one paragraph on stderr and exit status 2.
"""

import argparse
import json
import os
import sys
import textwrap
from pathlib import Path

from qtutor.errors import QtutorError

SOURCE = "'embedded' (the decoder that comes with qtutor), a folder, a hub id, or a folder that 'qtutor quantize' wrote"


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = build_parser().parse_args(argv)
    try:
        return options.run(options)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `qtutor inspect FILE | head` is no error
        return 0
    except (QtutorError, OSError) as error:
        print(textwrap.fill(f"qtutor: {error}", 110, break_long_words=False, break_on_hyphens=False), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nqtutor: stopped.", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
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

    sub = command(
        learn,
        "learn",
        "Copy the chapters into a folder of yours and open JupyterLab on the first.",
        ["learn", "learn ~/quantization --no-browser", "learn --no-start    # only copy, or bring up to date"],
    )
    sub.add_argument("folder", nargs="?", default="qtutor-course", help="your workspace (default: %(default)s)")
    sub.add_argument("--no-browser", action="store_true", help="print the address, open no browser")
    sub.add_argument("--no-start", action="store_true", help="do not start JupyterLab")

    sub = command(
        progress,
        "progress",
        "Show the exercises, and which of them you have done.",
        ["progress", "progress ~/quantization"],
    )
    sub.add_argument("folder", nargs="?", help="your workspace (default: the one you are in, or qtutor-course)")

    sub = command(
        quantize,
        "quantize",
        "Quantize a decoder and write it to a folder.",
        [
            "quantize embedded out --bits 4 --group-size 64",
            "quantize embedded out --bits 3 --symmetric --clip mse",
            "quantize path/to/llama out --bits 8 --group-size -1",
        ],
    )
    sub.add_argument("source", metavar="SRC", help=SOURCE)
    sub.add_argument("out", metavar="OUT", help="the folder to write")
    sub.add_argument("--method", default="rtn", help="rtn: round to nearest (default)")
    sub.add_argument("--bits", type=int, default=4, help="bits of a weight, 2 to 8 (default: %(default)s)")
    sub.add_argument(
        "--group-size",
        type=int,
        default=64,
        help="weights that share a scale; -1: a scale per channel, 0: one per tensor (default: %(default)s)",
    )
    sub.add_argument("--symmetric", action="store_true", help="a grid around zero, without zero points")
    sub.add_argument(
        "--clip", choices=["mse"], help="mse: narrow each group's range to where the squared error is least"
    )
    sub.add_argument("--format", choices=["qtutor"], default="qtutor", help="the layout of OUT (default: %(default)s)")

    sub = command(
        generate,
        "generate",
        "Let a decoder continue a text.",
        ["generate embedded 'def mean(values):'", "generate out '>>> 37 + 48' --max-new-tokens 8"],
    )
    sub.add_argument("source", metavar="SRC", help=SOURCE)
    sub.add_argument("text", help="what the decoder continues")
    sub.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="(default: %(default)s)")

    sub = command(
        evaluate,
        "eval",
        "Measure a decoder: perplexity, bytes, valid Python, right answers.",
        ["eval embedded", "eval out"],
    )
    sub.add_argument("source", metavar="SRC", help=SOURCE)

    sub = command(
        inspect,
        "inspect",
        "Show what a file or folder holds: tensors, their bytes, the recipe.",
        ["inspect out", "inspect out/model.safetensors"],
    )
    sub.add_argument("file", metavar="FILE", help="a .safetensors file, or a folder with some")
    return parser


def _parser(make, description: str, examples: list[str], **arguments) -> argparse.ArgumentParser:
    epilog = "examples:\n" + "\n".join(f"  qtutor {example}" for example in examples)
    formatter = argparse.RawDescriptionHelpFormatter
    return make(description=description, epilog=epilog.replace("%", "%%"), formatter_class=formatter, **arguments)


def load(source: str):
    """(model, tokenizer) of whatever a user may name as SRC."""
    import qtutor

    if source == "embedded":
        return qtutor.load_decoder()
    if not (Path(source) / "qtutor.json").is_file():
        return qtutor.load_decoder(source, dtype="auto")  # a large checkpoint in float32 would take twice the memory
    from transformers import AutoTokenizer

    model = qtutor.load_quantized(source)
    try:
        return model, AutoTokenizer.from_pretrained(source)
    except Exception as error:  # transformers raises many kinds for a tokenizer that is missing or damaged
        raise QtutorError(
            f"{source} holds a quantized model, but its tokenizer cannot be loaded "
            f"({(str(error).splitlines() or [type(error).__name__])[0]}). Copy tokenizer.json and "
            "tokenizer_config.json of the original model into the folder, or quantize it again with 'qtutor quantize'."
        ) from error


def learn(options) -> int:
    from qtutor.course import workspace

    report = workspace.make(options.folder)
    print(report)
    if options.no_start:
        return 0
    return workspace.start(report.folder, browser=not options.no_browser)


def progress(options) -> int:
    from qtutor.course import progress_table, workspace

    here = workspace.find()
    print(progress_table(options.folder or here or workspace.DEFAULT_FOLDER))
    return 0


def quantize(options) -> int:
    import qtutor

    recipe = qtutor.Recipe(
        method=options.method,
        bits=options.bits,
        group_size=options.group_size,
        symmetric=options.symmetric,
        clip=options.clip,
    )
    model, tokenizer = load(options.source)
    print(qtutor.quantize(model, recipe))
    qtutor.export(model, options.out, format=options.format, tokenizer=tokenizer)
    print(f"Written to {options.out}. Next: qtutor eval {options.out}")
    return 0


def generate(options) -> int:
    if options.max_new_tokens < 1:
        raise QtutorError(f"--max-new-tokens is {options.max_new_tokens}; it has to be at least 1.")
    import qtutor

    model, tokenizer = load(options.source)
    print(qtutor.generate(model, tokenizer, options.text, max_new_tokens=options.max_new_tokens))
    return 0


def evaluate(options) -> int:
    import qtutor

    model, tokenizer = load(options.source)
    tokens = qtutor.evaluate.held_out_tokens(tokenizer)
    rows = [
        ("perplexity, held-out code", f"{qtutor.perplexity(model, tokens):.3f}"),
        ("bytes of the weights", f"{qtutor.evaluate.model_bytes(model):,}"),
        ("functions ast.parse accepts", f"{qtutor.evaluate.ast_validity(model, tokenizer, count=40):.0%}"),
    ]
    accuracy = qtutor.evaluate.task_accuracy(model, tokenizer, count=50)
    rows += [(f"answers right, {kind}", f"{share:.0%}") for kind, share in accuracy.items()]
    print_table(("measure", options.source), rows)
    return 0


def inspect(options) -> int:
    """Show headers only: no tensor is read, so that this is quick for files of any size."""
    path = Path(options.file)
    if not path.exists():
        raise QtutorError(f"{path} does not exist: name a .safetensors file, or a folder that holds some.")
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise QtutorError(f"{path} holds no .safetensors file, and 'qtutor inspect' reads no other kind yet.")
    tensors = {}
    for file in files:
        header = read_header(file)
        metadata = header.pop("__metadata__", {})
        print(f"{file}: {file.stat().st_size:,} bytes" + (f", metadata {metadata}" if metadata else ""))
        tensors.update(header)
    sizes = {name: about["data_offsets"][1] - about["data_offsets"][0] for name, about in tensors.items()}
    rows = [
        (name, about["dtype"], " x ".join(map(str, about["shape"])), f"{sizes[name]:,}")
        for name, about in sorted(tensors.items())
    ]
    print_table(("tensor", "dtype", "shape", "bytes"), [*rows, ("total", "", "", f"{sum(sizes.values()):,}")])
    if path.is_dir() and (path / "qtutor.json").is_file():
        print()
        print_layers(path / "qtutor.json", sizes)
    return 0


def read_header(path: Path) -> dict:
    """The header of a safetensors file: 8 bytes of length, then JSON; checked against the file's true size."""
    if path.suffix != ".safetensors":
        raise QtutorError(
            f"{path}: 'qtutor inspect' reads .safetensors files, or a folder that holds some; this is neither."
        )
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if 8 + length <= size else b""
    try:
        header = json.loads(text)
        spans = [about["data_offsets"][1] for name, about in header.items() if name != "__metadata__"]
        expected = 8 + length + max(spans, default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise QtutorError(
            f"{path} has {size:,} bytes and no readable safetensors header: it was cut off, or is another kind of "
            "file. Copy, download or export it again."
        ) from None
    if size != expected:
        raise QtutorError(
            f"{path} has {size:,} bytes, but its header speaks of {expected:,}: it is "
            f"{'truncated' if size < expected else 'longer than it should be'}. Copy, download or export it again."
        )
    return header


def print_layers(path: Path, sizes: dict[str, int]) -> None:
    """How each layer of a folder that qtutor wrote is quantized; bits per weight counts its scales and zero points."""
    rows, weights, total = [], 0, 0
    try:
        for name, layer in json.loads(path.read_text(encoding="utf-8"))["layers"].items():
            count = layer["shape"][0] * layer["shape"][1]
            size = sum(sizes[key] for key in sizes if key.startswith(f"{name}.") and key != f"{name}.bias")
            grid = "symmetric" if layer["symmetric"] else "asymmetric"
            rows.append((name, str(layer["bits"]), str(layer["group_size"]), grid, f"{8 * size / count:.3f}"))
            weights, total = weights + count, total + size
        rows.append(("total", "", "", "", f"{8 * total / weights:.3f}"))
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise QtutorError(f"{path} is damaged ({error!r}): quantize the model again.") from None
    print_table(("quantized layer", "bits", "group size", "grid", "bits per weight"), rows)


def print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, tuple("-" * width for width in widths), *rows]:
        first, *rest = (cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        print("  ".join([first, *rest]).rstrip())


if __name__ == "__main__":
    sys.exit(main())
