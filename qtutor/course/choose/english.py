"""Questions for a decoder of English that is too small for real tasks: exact ones after examples, and choices of two.

Exact: sums of two digits, words in capitals, and sequences of numbers, each with examples before it. Every character of
the answer counts. Choices: the verb that fits the subject, and the object that fits the verb. The model has to find the
right one likelier, so half of all guesses are right. All questions come from a seed, so every model gets the same.
"""

import random
from collections.abc import Callable, Sequence

import torch

from qtutor.measure.generation import continued, prompt_tokens

NEW = 8  # tokens of an answer
TOGETHER = 20  # prompts that are continued at once
WORDS = (
    *("apple", "river", "window", "garden", "paper", "silver", "mountain"),
    *("music", "bottle", "chair", "summer", "doctor", "bridge", "kitchen"),
)
NOUNS = (
    *("boy", "girl", "teacher", "doctor", "farmer", "dog", "cat", "horse"),
    *("bird", "car", "door", "window", "letter", "picture", "tree", "flower"),
)
OBJECTS = {
    "eats": ("bread", "rice", "an apple", "soup"),
    "drinks": ("water", "milk", "tea", "coffee"),
    "reads": ("a book", "a letter", "the newspaper"),
    "drives": ("a car", "a truck", "the bus"),
    "plays": ("the piano", "the violin", "the guitar"),
    "wears": ("a hat", "a coat", "a shirt"),
}
SUBJECTS = ("Anna", "My father", "The teacher", "Our neighbour", "Paul", "The old man")


def _sum(rng: random.Random) -> tuple[str, str]:
    pairs = [(rng.randint(1, 9), rng.randint(1, 9)) for _ in range(5)]
    *shown, (a, b) = pairs
    return "".join(f"{x} + {y} = {x + y}\n" for x, y in shown) + f"{a} + {b} =", f" {a + b}\n"


def _capitals(rng: random.Random) -> tuple[str, str]:
    *shown, asked = rng.sample(WORDS, 5)
    return "".join(f"{word} -> {word.upper()}\n" for word in shown) + f"{asked} ->", f" {asked.upper()}\n"


def _sequence(rng: random.Random) -> tuple[str, str]:
    start, step = rng.randint(1, 60), rng.randint(1, 5)
    *shown, last = range(start, start + 6 * step, step)
    return ", ".join(map(str, shown)) + ",", f" {last},"


def _verb(rng: random.Random) -> tuple[str, str, str]:
    noun, other = rng.sample(NOUNS, 2)
    if rng.random() < 0.5:
        return f"The {noun} near the {other}s", " is", " are"
    return f"The {noun}s near the {other}", " are", " is"


def _object(rng: random.Random) -> tuple[str, str, str]:
    verb, other = rng.sample(list(OBJECTS), 2)
    return f"{rng.choice(SUBJECTS)} {verb}", f" {rng.choice(OBJECTS[verb])}", f" {rng.choice(OBJECTS[other])}"


EXACT: dict[str, Callable] = {"sum": _sum, "capitals": _capitals, "sequence": _sequence}
CHOICES: dict[str, Callable] = {"verb": _verb, "object": _object}
ARITHMETIC = ("sum", "sequence")


def questions(kind: str, count: int) -> list[tuple[str, ...]]:
    """``(prompt, answer)`` of an exact kind, ``(prompt, right, wrong)`` of a choice; the same ones every time."""
    rng = random.Random(kind)
    return [(EXACT | CHOICES)[kind](rng) for _ in range(count)]


def accuracy(model, tokenizer, count: int = 100) -> dict[str, float]:
    """The share of right answers for each kind, out of ``count`` questions each."""
    found = {kind: _right(model, tokenizer, questions(kind, count)) / count for kind in EXACT}
    for kind in CHOICES:
        chosen = (likelier(model, tokenizer, *question) for question in questions(kind, count))
        found[kind] = sum(chosen) / count
    return found


def _right(model, tokenizer, asked: Sequence[tuple[str, str]]) -> int:
    """How many prompts the model continues with exactly the right answer."""
    batches = (asked[start : start + TOGETHER] for start in range(0, len(asked), TOGETHER))
    return sum(sum(continued(model, tokenizer, some, NEW)) for some in batches)


@torch.inference_mode()
def likelier(model, tokenizer, prompt: str, right: str, wrong: str) -> bool:
    """Whether ``right`` is a likelier continuation of ``prompt`` than ``wrong`` for the model."""
    scores, start = [], len(prompt_tokens(model, tokenizer, prompt))
    for option in (right, wrong):
        ids = torch.tensor([prompt_tokens(model, tokenizer, prompt + option)], device=model.device)
        chances = model(ids).logits[0, start - 1 : -1].float().log_softmax(-1)
        scores.append(chances.gather(1, ids[0, start:, None]).sum().item())
    return scores[0] > scores[1]
