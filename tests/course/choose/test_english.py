"""Questions for a decoder of English: the answers are right, and a model is judged by the answer that it prefers."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from qtutor.course.choose import english


def test_answers_are_right():
    for prompt, answer in english.questions("sum", 100):
        *shown, asked = prompt.split("\n")
        assert len(shown) == 4
        for line in (*shown, asked + answer.rstrip("\n")):
            left, right = line.split(" = ")
            assert sum(map(int, left.split(" + "))) == int(right)
    for prompt, answer in english.questions("capitals", 100):
        asked = prompt.split("\n")[-1].removesuffix(" ->")
        assert answer == f" {asked.upper()}\n" and answer.strip() not in prompt
    for prompt, answer in english.questions("sequence", 100):
        numbers = [int(part) for part in (prompt + answer).split(",") if part.strip()]
        assert len(numbers) == 6 and len({b - a for a, b in itertools.pairwise(numbers)}) == 1


def test_choices_have_one_right_side():
    found = set()
    for prompt, right, wrong in english.questions("verb", 100):
        subject = prompt.split(" near ")[0]
        assert (right, wrong) == ((" are", " is") if subject.endswith("s") else (" is", " are"))
        found.add(right)
    assert found == {" is", " are"}
    for prompt, right, wrong in english.questions("object", 100):
        fitting = english.OBJECTS[prompt.split()[-1]]
        assert right[1:] in fitting and wrong[1:] not in fitting


@pytest.mark.parametrize("kind", [*english.EXACT, *english.CHOICES])
def test_every_model_gets_the_same_questions(kind):
    asked = english.questions(kind, 50)
    assert asked == english.questions(kind, 50) and asked[:10] == english.questions(kind, 10)
    assert len(set(asked)) > 30


class Letters:
    """A tokenizer of single letters. For ``model`` below, the letter ``favourite`` is always the likeliest one."""

    eos_token_id = 0

    def __call__(self, text):
        return {"input_ids": [ord(letter) for letter in text]}


def model(favourite: str):
    def logits(ids):
        made = torch.zeros(*ids.shape, 128)
        made[..., ord(favourite)] = 5
        return SimpleNamespace(logits=made)

    logits.device = torch.device("cpu")
    logits.config = SimpleNamespace(bos_token_id=None, vocab_size=128)
    return logits


def test_the_likelier_of_two():
    assert english.likelier(model("b"), Letters(), "aaa", "bb", "cc")
    assert not english.likelier(model("c"), Letters(), "aaa", "bb", "cc")
    assert not english.likelier(model("a"), Letters(), "aaa", "bb", "cc")  # equally likely counts as wrong
    # the letters of the prompt itself do not count
    assert english.likelier(model("b"), Letters(), "c", "bc", "cd")
