"""`qtutor compare`: several decoders against their float original, as one table and one picture."""

import os
import sys
from pathlib import Path

from qtutor.cli.measuring import (
    add_measuring,
    as_json,
    check_measuring,
    check_same_tokens,
    error,
    numbers,
    passes_of,
    text_for,
    window_for,
)
from qtutor.cli.parsing import DEVICE, SOURCE
from qtutor.cli.source import load_source
from qtutor.cli.terminal import passes
from qtutor.errors import QtutorError
from qtutor.files import kind_of

EXAMPLES = [
    "compare out3 out4 --against embedded",
    "compare a.gguf b.gguf out --against path/to/llama --text text.txt --picture kl.png",
    "compare out --against embedded --json",
]
PICTURES = (".png", ".svg")
OURS = "Drawn by qtutor compare"  # a text in every picture of ours; only such pictures may be replaced
NEAR = 4096  # that text is in this many bytes at the beginning of a picture
HEAD = ("decoder", "bytes", "bits", "perplexity", "rise %", "±", "KL", "±", "flips %", "±")


def add_to(command) -> None:
    """Add ``compare`` to the commands; ``command`` creates its parser."""
    description = "Compare quantized decoders with the float one: one table, and one picture of bytes against KL."
    sub = command(compare, "compare", description, EXAMPLES)
    sub.add_argument("sources", metavar="SRC", nargs="+", help=f"each {SOURCE}")
    sub.add_argument("--against", metavar="FLOAT", required=True, help="the decoder that all of them were made of")
    sub.add_argument("--device", help=DEVICE)
    add_measuring(sub)
    sub.add_argument("--picture", metavar="FILE", help="a .png or .svg file to draw bytes against KL divergence into")


def compare(options) -> int:
    """``qtutor compare``: load one decoder after the other and measure it beside the float one: two are in memory."""
    _check_picture(options.picture)
    check_measuring(options, [options.against, *options.sources])
    reference, tokenizer = load_source(options.against, options.device)
    notes = []
    window = window_for(options, reference, notes)
    text = text_for(options, tokenizer, window, reference)
    notes.insert(0, f"Measured on {text.told}, in windows of {window}; ± is one standard error over the windows.")
    found = []
    try:
        for source in options.sources:
            found.append(_measured(options, source, reference, tokenizer, text, window))
    finally:  # results from before a failure or Ctrl-C are not lost
        if found:
            _show(options, reference, text, window, found, notes)
    if options.picture is not None:
        _draw(options.picture, found)
    return 0


def _measured(options, source: str, reference, tokenizer, text, window: int) -> dict:
    """The numbers of one decoder."""
    import qtutor
    from qtutor.errors import naming
    from qtutor.loading import weight_bytes
    from qtutor.measure.against import check_comparable

    model, its_tokenizer = load_source(source, options.device)
    with naming(source):
        check_comparable(model, reference)
        check_same_tokens(text, tokenizer, its_tokenizer, (options.against, source))
        with passes(model, Path(source).name, passes_of(text.token_ids, window)):
            comparison = qtutor.evaluate.compare(model, reference, text.token_ids, window)
    nbytes = weight_bytes(source, model)
    sizes = {"bytes": nbytes, "bits_per_weight": qtutor.evaluate.bits_per_weight(model, nbytes)}
    return {"source": source} | sizes | numbers(comparison)


def _show(options, reference, text, window: int, found: list[dict], notes: list[str]) -> None:
    """The table, or JSON; the float decoder comes first."""
    import qtutor
    from qtutor.inspection import print_table
    from qtutor.loading import weight_bytes

    nbytes = weight_bytes(options.against, reference)
    bits = qtutor.evaluate.bits_per_weight(reference, nbytes)
    if options.json:
        theirs = {"source": options.against, "bytes": nbytes, "bits_per_weight": bits}
        about = {"text": text.told, "window": window, "tokens": found[0]["tokens"], "windows": found[0]["windows"]}
        theirs |= {name: found[0][f"float_{name}"] for name in ("perplexity", "perplexity_error")}
        print(as_json(about | {"float": theirs, "decoders": found, "notes": notes}))
        return
    first = (options.against, f"{nbytes:,}", f"{bits:.2f}", f"{found[0]['float_perplexity']:.3f}", *[""] * 6)
    print_table(HEAD, [first, *map(_row, found)])
    for note in notes:
        print(note)


def _row(one: dict) -> tuple[str, ...]:
    return (
        one["source"],
        f"{one['bytes']:,}",
        f"{one['bits_per_weight']:.2f}",
        f"{one['perplexity']:.3f}",
        f"{one['loss_percent']:.2f}",
        error(one["loss_percent_error"], 2),
        f"{one['kl']:.5f}",
        error(one["kl_error"], 5),
        f"{100 * one['flips']:.2f}",
        error(one["flips_error"], 2, 100),
    )


def _check_picture(file: str | None) -> None:
    """Before anything is measured, refuse a picture that could not be written."""
    if file is None:
        return
    path = Path(file)
    if path.suffix.lower() not in PICTURES:
        raise QtutorError(f"--picture {file}: name a file that ends in {' or '.join(PICTURES)}.")
    if path.is_dir() or not path.parent.is_dir():
        what = "that is a folder" if path.is_dir() else f"the folder {path.parent} does not exist"
        raise QtutorError(f"--picture {file}: {what}. Name a file in a folder that is there.")
    if os.path.lexists(path) and not _is_ours(path):
        raise QtutorError(f"--picture {file} exists, and qtutor did not draw it: choose another name, or remove it.")


def _is_ours(path: Path) -> bool:
    """Whether ``path`` is a picture that an earlier run has drawn."""
    if kind_of(path) != "a file":
        return False
    with path.open("rb") as picture:
        return OURS.encode() in picture.read(NEAR)


def _draw(file: str, found: list[dict]) -> None:
    """Write the picture completely or not at all."""
    from qtutor.files import as_qtutor_error, written_beside
    from qtutor.plots.comparison import Point, bytes_against_kl, image

    names = _short([one["source"] for one in found])
    points = [Point(name, one["bytes"], one["kl"], one["kl_error"]) for name, one in zip(names, found, strict=True)]
    path = Path(file)
    with as_qtutor_error(path), written_beside(path) as new:
        new.write_bytes(image(bytes_against_kl(points), path.suffix.lower().removeprefix("."), OURS))
    print(f"Drawn into {path}.", file=sys.stderr)  # stdout may be JSON


def _short(sources: list[str]) -> list[str]:
    """The last parts of the names; whole names if the last parts are not enough."""
    names = [Path(source).name or source for source in sources]
    return names if len(set(names)) == len(names) else sources
