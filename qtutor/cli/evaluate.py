"""`qtutor eval`: what a decoder is worth, in a table."""

from qtutor.cli.parsing import add_source
from qtutor.cli.source import load
from qtutor.cli.terminal import passes

FUNCTIONS, QUESTIONS = 40, 50


def add_to(command) -> None:
    """Add ``eval`` to the commands; ``command`` makes one."""
    description = "Measure a decoder: perplexity, bytes, valid Python, right answers."
    add_source(command(evaluate, "eval", description, ["eval embedded", "eval out", "eval out.gguf"]))


def evaluate(options) -> int:
    """``qtutor eval``: perplexity, size, and how well a model writes functions and answers questions."""
    from qtutor.inspection import print_table
    from qtutor.loading import weight_bytes

    model, tokenizer = load(options)
    window, notes = _window(model), []
    rows = [
        ("perplexity, held-out code", _perplexity(model, tokenizer, window, notes)),
        ("bytes of the weights", f"{weight_bytes(options.source, model):,}"),
        ("functions ast.parse accepts", _validity(model, tokenizer, notes)),
    ]
    rows += [(f"answers right, {kind}", share) for kind, share in _accuracy(model, tokenizer, notes).items()]
    print_table(("measure", options.source), rows)
    for note in notes:
        print(note)
    return 0


def _perplexity(model, tokenizer, window: int, notes: list[str]) -> str:
    import qtutor
    from qtutor.measure.losses import BATCH, WINDOW

    if window < WINDOW:
        notes.append(
            f"The model's context is {window} tokens: the text was read in windows of so many, not of {WINDOW}."
        )
    tokens = qtutor.evaluate.held_out_tokens(tokenizer)
    with passes(model, "perplexity", -(-len(tokens) // (window * BATCH)) + 1):
        return f"{qtutor.perplexity(model, tokens, window=window):.3f}"


def _validity(model, tokenizer, notes: list[str]) -> str:
    import qtutor
    from qtutor.measure.generation import TooShort, functions

    try:
        with passes(model, "functions", 96):
            share = qtutor.evaluate.ast_validity(model, tokenizer, count=FUNCTIONS)
    except TooShort as error:
        notes.append(f"No function was completed: {error}")
        return "-"
    left_out = FUNCTIONS - len(functions(model, tokenizer, FUNCTIONS))
    if left_out:
        notes.append(f"{left_out} of {FUNCTIONS} functions do not fit into the context and were left out.")
    return f"{share:.0%}"


def _accuracy(model, tokenizer, notes: list[str]) -> dict[str, str]:
    import qtutor
    from qtutor.decoder import tasks
    from qtutor.measure.generation import TooShort

    longest = [max(len(answer) for _, answer in tasks.questions(kind, QUESTIONS)) for kind in tasks.KINDS]
    try:
        with passes(model, "questions", sum(longest) + len(longest)):
            shares = qtutor.evaluate.task_accuracy(model, tokenizer, count=QUESTIONS)
    except TooShort as error:
        notes.append(f"No question was asked: {error}")
        return dict.fromkeys(tasks.KINDS, "-")
    return {kind: f"{share:.0%}" for kind, share in shares.items()}


def _window(model) -> int:
    from qtutor.measure.losses import WINDOW

    return min(WINDOW, getattr(model.config, "max_position_embeddings", WINDOW))
