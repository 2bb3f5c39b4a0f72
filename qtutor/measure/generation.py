"""What a decoder writes, and how much of it is right: greedy text, answers to questions, code that parses."""

import ast

import torch

from qtutor.decoder import corpus, tasks
from qtutor.errors import QtutorError


def task_accuracy(model, tokenizer, kinds: tuple[str, ...] | None = None, count: int = 100) -> dict[str, float]:
    """Share of interpreter questions answered right, per kind (see :mod:`qtutor.decoder.tasks`).

    Right means that greedy decoding prints exactly Python's answer and then ends the line, in whatever tokens.
    """
    result = {}
    for kind in kinds or tuple(tasks.KINDS):
        asked = tasks.questions(kind, count)
        prompts = [f"{tasks.PROMPT}{expression}\n" for expression, _ in asked]
        longest = 1 + max(len(answer) for _, answer in asked)  # a token is at least a character long
        texts = generate_batch(model, tokenizer, prompts, longest)
        right = [
            text[len(prompt) :].startswith(f"{answer}\n") for prompt, text, (_, answer) in zip(prompts, texts, asked)
        ]
        result[kind] = sum(right) / count
    return result


def first_body(beginning: str, continuation: str) -> str:
    """A function cut at its first dedent: ``beginning``, then the lines of ``continuation`` that are blank or indented.

    Where the continuation ends before any dedent, its last statement may be unfinished and is dropped (unless it is the
    only one).
    """
    lines = continuation.splitlines(keepends=True)
    for i, line in enumerate(lines):
        if line.strip() and not line[0].isspace():
            return beginning + "".join(lines[:i])
    indents = {i: len(line) - len(line.lstrip()) for i, line in enumerate(lines) if line.strip()}
    statements = [i for i, indent in indents.items() if indent <= next(iter(indents.values()))]
    return beginning + "".join(lines[: statements[-1]] if len(statements) > 1 else lines)


def is_python(text: str) -> bool:
    """Whether ``ast.parse`` accepts the text."""
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):  # ValueError: NUL bytes
        return False
    return True


def ast_validity(model, tokenizer, count: int = 60, max_new_tokens: int = 96) -> float:
    """Share of held-out functions, given signature and docstring, whose greedy completion ``ast.parse`` accepts.

    The first ``count`` of :func:`qtutor.decoder.corpus.held_out_functions`, each cut by :func:`first_body`; a
    completion without a body is not accepted.
    """
    beginnings = corpus.held_out_functions()[:count]
    # The two line ends stand between functions in the text that the decoder learned from.
    texts = generate_batch(model, tokenizer, ["\n\n" + beginning for beginning in beginnings], max_new_tokens)
    valid = 0
    for beginning, text in zip(beginnings, texts, strict=True):
        function = first_body(beginning, text[2 + len(beginning) :])
        valid += function.strip() != beginning.strip() and is_python(function)
    return valid / len(beginnings)


@torch.inference_mode()
def generate_batch(model, tokenizer, prompts: list[str], max_new_tokens: int = 64) -> list[str]:
    """Greedy continuations: each prompt followed by what the model adds. Stops at the end-of-text token."""
    encoded = [tokenizer((tokenizer.bos_token or "") + prompt)["input_ids"] for prompt in prompts]
    longest = max(map(len, encoded))
    room = getattr(model.config, "max_position_embeddings", longest + max_new_tokens) - longest
    if room < 1:
        raise QtutorError(f"a prompt of {longest} tokens leaves no room in the model's context; shorten it.")
    pad = tokenizer.eos_token_id or 0
    ids = torch.tensor([[pad] * (longest - len(e)) + e for e in encoded])  # padded on the left
    mask = torch.tensor([[0] * (longest - len(e)) + [1] * len(e) for e in encoded])
    written = model.generate(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=min(max_new_tokens, room),
        do_sample=False,
        pad_token_id=pad,
    )
    added = tokenizer.batch_decode(written[:, longest:], skip_special_tokens=True)
    return [prompt + text for prompt, text in zip(prompts, added, strict=True)]


def generate(model, tokenizer, prompt: str, max_new_tokens: int = 64) -> str:
    """``prompt`` and its greedy continuation, as text."""
    return generate_batch(model, tokenizer, [prompt], max_new_tokens)[0]
