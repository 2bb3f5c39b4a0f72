"""The text that a decoder writes, and how much is right: greedy text, answers to questions, code that parses."""

import ast
from collections.abc import Sequence

import torch

from qtutor.decoder import corpus, tasks
from qtutor.errors import QtutorError
from qtutor.guards.running import check_measurable
from qtutor.runtime.steps import quick_steps

BETWEEN = "\n\n"  # the text between functions in the training text of the embedded decoder


class TooShort(QtutorError):
    """The model's context is too short for the measurement."""


def task_accuracy(model, tokenizer, kinds: tuple[str, ...] | None = None, count: int = 100) -> dict[str, float]:
    """Share of interpreter questions answered right, for each kind (see :mod:`qtutor.decoder.tasks`).

    Right means that greedy decoding prints exactly Python's answer and then ends the line, however it is split into
    tokens. Raises :class:`TooShort` for a model whose context does not hold question and answer.
    """
    result = {}
    for kind in kinds or tuple(tasks.KINDS):
        right = right_answers(model, tokenizer, tasks.questions(kind, count), f"a question of kind {kind!r}")
        result[kind] = sum(right) / count
    return result


def right_answers(model, tokenizer, asked: Sequence[tuple[str, str]], what: str = "a question") -> list[bool]:
    """For each of the interpreter's questions ``asked``, (expression, answer), whether it is answered right.

    Right and too short mean the same as in :func:`task_accuracy`; what: the name of a question in the error message.
    """
    asked = [(f"{tasks.PROMPT}{expression}\n", f"{answer}\n") for expression, answer in asked]
    longest = max(len(answer) for _, answer in asked)  # a token has at least one character
    if not all(fitting(model, tokenizer, [prompt for prompt, _ in asked], longest)):
        raise TooShort(_too_short(model, f"{what} and its answer"))
    return continued(model, tokenizer, asked, longest)


def continued(model, tokenizer, asked: Sequence[tuple[str, str]], max_new_tokens: int) -> list[bool]:
    """For each prompt in ``asked``, (prompt, text), whether the model continues it greedily by exactly its text."""
    texts = generate_batch(model, tokenizer, [prompt for prompt, _ in asked], max_new_tokens)
    return [text[len(prompt) :].startswith(right) for text, (prompt, right) in zip(texts, asked)]


def first_body(beginning: str, continuation: str) -> str:
    """A function cut at its first dedent: ``beginning``, then the lines of ``continuation`` that are blank or indented.

    If the continuation ends before any dedent, its last statement may be unfinished and is dropped (unless it is the
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

    The functions are the first ``count`` of :func:`qtutor.decoder.corpus.held_out_functions`, each cut by
    :func:`first_body`; a completion without a body is not accepted. Functions that do not fit into a short context with
    their completion are left out (:func:`functions` returns the others). Raises :class:`TooShort` if none is left.
    """
    beginnings = functions(model, tokenizer, count, max_new_tokens)
    if not beginnings:
        raise TooShort(_too_short(model, f"a function and {max_new_tokens} tokens of its completion"))
    texts = generate_batch(model, tokenizer, [BETWEEN + beginning for beginning in beginnings], max_new_tokens)
    valid = 0
    for beginning, text in zip(beginnings, texts, strict=True):
        function = first_body(beginning, text[len(BETWEEN + beginning) :])
        valid += function.strip() != beginning.strip() and is_python(function)
    return valid / len(beginnings)


def functions(model, tokenizer, count: int, max_new_tokens: int = 96) -> list[str]:
    """The held-out functions that :func:`ast_validity` uses: those of the first ``count`` that fit into the context."""
    beginnings = corpus.held_out_functions()[:count]
    fit = fitting(model, tokenizer, [BETWEEN + beginning for beginning in beginnings], max_new_tokens)
    return [beginning for beginning, fits in zip(beginnings, fit, strict=True) if fits]


def generate_batch(
    model, tokenizer, prompts: list[str], max_new_tokens: int = 64, streamer=None, cache=None
) -> list[str]:
    """Greedy continuations: each prompt followed by the text that the model adds. Stops at a token that ends texts.

    Those tokens are the eos tokens of ``model.generation_config``, one or several. streamer: one of transformers',
    which gets the tokens of a single prompt while they are computed. cache: a :class:`qtutor.runtime.kv.KVFormat` to
    store keys and values in. Raises :class:`QtutorError` for a prompt that is no text, has no tokens, has too many for
    the model's context, or has some that the model does not embed, and for less than one new token.
    """
    check_measurable(model)
    if type(max_new_tokens) is not int or max_new_tokens < 1:
        raise QtutorError(f"max_new_tokens is {max_new_tokens!r}; expected a whole number, at least 1.")
    if not prompts:
        return []
    encoded = [prompt_tokens(model, tokenizer, prompt) for prompt in prompts]
    longest = max(map(len, encoded))
    room = room_behind(model, longest)
    pad = tokenizer.eos_token_id or 0
    ids = torch.tensor([[pad] * (longest - len(e)) + e for e in encoded])  # padded on the left
    mask = torch.tensor([[0] * (longest - len(e)) + [1] * len(e) for e in encoded])
    with torch.inference_mode(), quick_steps(model):
        written = model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens if room is None else min(max_new_tokens, room),
            do_sample=False,
            pad_token_id=pad,
            streamer=streamer,
            **stored_in(cache, model),
        )
    rows = [before(text_ends(model), row) for row in written[:, longest:].tolist()]
    added = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return [prompt + text for prompt, text in zip(prompts, added, strict=True)]


def generate(model, tokenizer, prompt: str, max_new_tokens: int = 64, streamer=None, cache=None) -> str:
    """``prompt`` and its greedy continuation, as text. The arguments are those of :func:`generate_batch`."""
    return generate_batch(model, tokenizer, [prompt], max_new_tokens, streamer, cache)[0]


def stored_in(cache, model) -> dict:
    """The argument of ``model.generate`` that says where keys and values are stored; empty for its own cache."""
    if cache is None:
        return {}
    from qtutor.runtime.kv import KVCache

    return {"past_key_values": KVCache(model, cache)}


def prompt_tokens(model, tokenizer, prompt: str) -> list[int]:
    """Token ids of a prompt.

    Usually the tokenizer alone decides whether a prompt begins with bos. A model may have learned from texts with bos
    while its tokenizer adds none. Then ``prompts_begin_with_bos`` in the config decides (as in the embedded decoder's:
    its training excerpts begin anywhere, and its prompts do not).
    """
    if not isinstance(prompt, str):
        raise QtutorError(
            f"the prompt is a {type(prompt).__name__}, and a text is needed. Several texts at once: "
            "qtutor.evaluate.generate_batch(model, tokenizer, prompts)."
        )
    try:
        prompt.encode()
    except UnicodeEncodeError as error:  # from a command line in another encoding
        raise QtutorError(f"the prompt {prompt[:60]!r} is no text that can be written as UTF-8: {error}.") from None
    ids = tokenizer(prompt)["input_ids"]
    bos = model.config.bos_token_id
    if getattr(model.config, "prompts_begin_with_bos", False) and bos is not None and ids[:1] != [bos]:
        ids = [bos, *ids]
    if not ids:
        raise QtutorError(
            f"the prompt {prompt!r} has no tokens, and the tokenizer adds none in front: there is nothing to continue. "
            "Give a text of at least one character."
        )
    check_embedded(model, tokenizer, ids, "the prompt")
    return ids


def check_embedded(model, tokenizer, ids: list[int], what: str) -> None:
    """Raise :class:`QtutorError` for a token that the model does not embed; what: the name of the token's text."""
    embedded, largest = model.config.vocab_size, max(ids, default=0)
    if min(ids, default=0) < 0:
        raise QtutorError(
            f"{what} has the token {min(ids)}, which does not exist: bos_token_id in config.json is wrong."
        )
    if largest >= embedded:
        raise QtutorError(
            f"{what} has the token {tokenizer.convert_ids_to_tokens(largest)!r}, number {largest}, and the model "
            f"embeds {embedded}: 0 to {embedded - 1}. Tokens were added and model.resize_token_embeddings was "
            "forgotten, or the tokenizer is another model's."
        )


def room_behind(model, tokens: int) -> int | None:
    """How many tokens fit behind a prompt of ``tokens``, at least one; ``None`` if the context has no end."""
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and tokens >= context:
        raise QtutorError(
            f"a prompt of {tokens} tokens leaves no room in the model's context of {context}; shorten it."
        )
    return None if context is None else context - tokens


def fitting(model, tokenizer, prompts: list[str], max_new_tokens: int) -> list[bool]:
    """For each prompt, whether ``max_new_tokens`` more fit into the model's context; true if it has no end."""
    context = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if context is None:
        return [True] * len(prompts)
    return [len(prompt_tokens(model, tokenizer, prompt)) + max_new_tokens <= context for prompt in prompts]


def _too_short(model, what: str) -> str:
    return f"the model's context of {model.config.max_position_embeddings} tokens is too short for {what}."


def text_ends(model) -> list[int]:
    """The tokens that end a text, one or several."""
    eos = model.generation_config.eos_token_id
    return eos if isinstance(eos, list) else [eos]


def before(ends: list[int], ids: list[int]) -> list[int]:
    """``ids`` before the first that is one of ``ends``: the rest is padding."""
    return ids[: next((at for at, number in enumerate(ids) if number in ends), len(ids))]
