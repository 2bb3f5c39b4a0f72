"""`qtutor eval`: how good a decoder is, in a table or as JSON."""

from qtutor.cli.measuring import (
    add_measuring,
    as_json,
    check_measuring,
    error,
    numbers,
    passes_of,
    reference_for,
    text_for,
    window_for,
)
from qtutor.cli.parsing import add_source
from qtutor.cli.source import load
from qtutor.cli.terminal import passes

FUNCTIONS, QUESTIONS = 40, 50
EXAMPLES = [
    "eval embedded",
    "eval out --against embedded",
    "eval out.gguf --against path/to/llama --text text.txt --json",
]


def add_to(command) -> None:
    """Add ``eval`` to the commands; ``command`` creates its parser."""
    description = "Measure a decoder: perplexity, bytes, speed, and what it lost against the float one."
    sub = command(evaluate, "eval", description, EXAMPLES)
    add_source(sub)
    sub.add_argument("--against", metavar="FLOAT", help="the decoder that SRC was made of: KL divergence and flips")
    add_measuring(sub)


def evaluate(options) -> int:
    """``qtutor eval``: perplexity, size and speed; for the embedded decoder also valid functions and right answers."""
    from qtutor.inspection import print_table
    from qtutor.measure.texts import has_embedded_vocabulary

    check_measuring(options, [source for source in (options.source, options.against) if source is not None])
    model, tokenizer = load(options)
    notes = []
    window = window_for(options, model, notes)
    text = text_for(options, tokenizer, window, model)
    found = {"source": options.source, "text": text.told, "window": window}
    notes.append(f"Measured on {text.told}, in windows of {window}; ± is one standard error over the windows.")
    rows = _losses(options, model, tokenizer, text, window, found)
    rows += _sizes(options.source, model, text, found, notes)
    if has_embedded_vocabulary(tokenizer):
        found["ast_validity"], found["answers"] = _validity(model, tokenizer, notes), _accuracy(model, tokenizer, notes)
        rows.append(("functions ast.parse accepts", _share(found["ast_validity"]), ""))
        rows += [(f"answers right, {kind}", _share(share), "") for kind, share in found["answers"].items()]
    if options.json:
        print(as_json(found | {"notes": notes}))
        return 0
    print_table(("measure", options.source, "±"), rows)
    for note in notes:
        print(note)
    return 0


def _losses(options, model, tokenizer, text, window: int, found: dict) -> list[tuple[str, str, str]]:
    """The measures on the text: rows of the table, and numbers in ``found``."""
    import qtutor

    total = passes_of(text.token_ids, window)
    if options.against is None:
        with passes(model, "perplexity", total):
            measured = qtutor.evaluate.perplexity_with_error(model, text.token_ids, window)
        found |= {"perplexity": measured.perplexity, "perplexity_error": measured.error}
        found |= {"tokens": measured.tokens, "windows": measured.windows}
        return [("perplexity", f"{measured.perplexity:.3f}", error(measured.error, 3))]
    reference = reference_for(options, text, model, tokenizer)
    with passes(model, "both models", total):
        comparison = qtutor.evaluate.compare(model, reference, text.token_ids, window)
    found |= {"against": options.against} | numbers(comparison)
    theirs = f"{comparison.reference_perplexity:.3f}", error(comparison.reference_perplexity_error, 3)
    return [
        ("perplexity", f"{comparison.perplexity:.3f}", error(comparison.perplexity_error, 3)),
        (f"perplexity of {options.against}", *theirs),
        ("rise of perplexity, %", f"{comparison.loss_percent:.2f}", error(comparison.loss_percent_error, 2)),
        ("KL divergence, nats a token", f"{comparison.kl:.5f}", error(comparison.kl_error, 5)),
        ("flips, %", f"{100 * comparison.flips:.2f}", error(comparison.flips_error, 2, 100)),
    ]


def _sizes(source: str, model, text, found: dict, notes: list[str]) -> list[tuple[str, str, str]]:
    """Bytes, bits a weight and speed: rows of the table, and numbers in ``found``."""
    import qtutor
    from qtutor.formats.gguf_files import file_in
    from qtutor.loading import weight_bytes

    nbytes = weight_bytes(source, model)
    bits = qtutor.evaluate.bits_per_weight(model, nbytes)
    speed = qtutor.evaluate.tokens_per_second(model, text.token_ids.flatten()[:32])
    found |= {"bytes": nbytes, "bits_per_weight": bits, "tokens_per_second": speed}
    if file_in(source) is not None:
        notes.append("qtutor runs a GGUF file as decoded float32 weights: llama.cpp runs it at another speed.")
    return [
        ("bytes of the weights", f"{nbytes:,}", ""),
        ("bits a weight", f"{bits:.2f}", ""),
        ("tokens a second, written", f"{speed:.1f}", ""),
    ]


def _validity(model, tokenizer, notes: list[str]) -> float | None:
    import qtutor
    from qtutor.measure.generation import TooShort, functions

    try:
        with passes(model, "functions", 96):
            share = qtutor.evaluate.ast_validity(model, tokenizer, count=FUNCTIONS)
    except TooShort as too_short:
        notes.append(f"No function was completed: {too_short}")
        return None
    left_out = FUNCTIONS - len(functions(model, tokenizer, FUNCTIONS))
    if left_out:
        notes.append(f"{left_out} of {FUNCTIONS} functions do not fit into the context and were left out.")
    return share


def _accuracy(model, tokenizer, notes: list[str]) -> dict[str, float | None]:
    import qtutor
    from qtutor.decoder import tasks
    from qtutor.measure.generation import TooShort

    longest = [max(len(answer) for _, answer in tasks.questions(kind, QUESTIONS)) for kind in tasks.KINDS]
    try:
        with passes(model, "questions", sum(longest) + len(longest)):
            return qtutor.evaluate.task_accuracy(model, tokenizer, count=QUESTIONS)
    except TooShort as too_short:
        notes.append(f"No question was asked: {too_short}")
        return dict.fromkeys(tasks.KINDS)


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
