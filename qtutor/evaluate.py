"""What quantization costs: perplexity, KL divergence, flips, right answers, valid code, true bytes.

Perplexity is ``exp`` of the mean negative log-likelihood of the next token. KL divergence to the float model and the
share of flipped top-1 tokens look at the whole distribution and notice what perplexity averages away (Dutta et al.
2024, "Accuracy is Not All You Need", arXiv 2407.09141).
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from qtutor.decoder import corpus, tasks
from qtutor.errors import QtutorError

WINDOW = 512
BATCH = 8


def held_out_tokens(tokenizer, limit: int | None = None) -> torch.Tensor:
    """Token ids, int64 ``[count]``, of the standard-library modules that the embedded decoder never saw."""
    return torch.tensor(tokenizer(corpus.held_out_code(), verbose=False)["input_ids"][:limit])


def _windows(token_ids: torch.Tensor, window: int, vocabulary: int) -> Iterator[torch.Tensor]:
    """Batches ``[batch, window]`` of consecutive windows; the tokens left over come last, as one row."""
    if token_ids.dtype not in (torch.int64, torch.int32):
        raise QtutorError(f"token ids have dtype {token_ids.dtype}; whole numbers (int64) are needed.")
    if token_ids.numel() < 2:
        raise QtutorError(f"{token_ids.numel()} tokens: at least 2 are needed, one to read and one to predict.")
    if int(token_ids.max()) >= vocabulary or int(token_ids.min()) < 0:
        raise QtutorError(
            f"token ids run from {int(token_ids.min())} to {int(token_ids.max())}, but the model's vocabulary has "
            f"{vocabulary}: 0 to {vocabulary - 1}. Was the text tokenized with another model's tokenizer?"
        )
    if token_ids.dim() == 2:
        yield from token_ids.split(BATCH)
        return
    whole = len(token_ids) // window * window
    if whole:
        yield from token_ids[:whole].reshape(-1, window).split(BATCH)
    if len(token_ids) - whole >= 2:
        yield token_ids[None, whole:]


@torch.inference_mode()
def perplexity(model, token_ids: torch.Tensor, window: int = WINDOW) -> float:
    """Perplexity of ``token_ids`` (int64, ``[count]`` cut into windows, or ``[samples, length]`` as they are).

    Every window starts with nothing before it; its first token is read, not predicted.
    """
    total, count = 0.0, 0
    for ids in _windows(token_ids, window, model.config.vocab_size):
        ids = ids.to(model.device)
        logits = model(ids, use_cache=False).logits[:, :-1].float()
        total += cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").item()
        count += ids[:, 1:].numel()
    return float(torch.tensor(total / count, dtype=torch.float64).exp())


@dataclass(frozen=True)
class Comparison:
    """A model against its float original on the same tokens."""

    perplexity: float
    reference_perplexity: float
    kl: float  # mean KL(reference || model) a token, in nats
    flips: float  # share of positions where the most likely next token differs

    @property
    def loss_percent(self) -> float:
        """By how many per cent perplexity rose."""
        return 100 * (self.perplexity / self.reference_perplexity - 1)


@torch.inference_mode()
def compare(model, reference, token_ids: torch.Tensor, window: int = WINDOW) -> Comparison:
    """Run both models over ``token_ids`` (as :func:`perplexity` does) and compare their next-token distributions."""
    sums = torch.zeros(4, dtype=torch.float64)
    count = 0
    for ids in _windows(token_ids, window, model.config.vocab_size):
        ids = ids.to(model.device)
        ours, theirs = (
            log_softmax(m(ids, use_cache=False).logits[:, :-1].float(), dim=-1).flatten(0, 1)
            for m in (model, reference)
        )
        following = ids[:, 1:].flatten()
        sums[0] -= ours.gather(1, following[:, None]).sum().double().cpu()
        sums[1] -= theirs.gather(1, following[:, None]).sum().double().cpu()
        sums[2] += kl_div(ours, theirs, log_target=True, reduction="sum").double().cpu()
        sums[3] += (ours.argmax(-1) != theirs.argmax(-1)).sum().double().cpu()
        count += following.numel()
    nll, reference_nll, kl, flips = sums / count
    return Comparison(nll.exp().item(), reference_nll.exp().item(), kl.item(), flips.item())


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


def model_bytes(model) -> int:
    """True bytes of a model's weights: parameters and persistent buffers, tied ones counted once."""
    seen = {}
    for tensor in model.state_dict(keep_vars=True).values():
        seen[(tensor.data_ptr(), tensor.nbytes)] = tensor.nbytes
    return sum(seen.values())
