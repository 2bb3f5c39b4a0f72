"""`qtutor generate --chat`: answers through the template, a typed conversation, a file with a question on each line."""

import io
import sys

import pytest
import torch

from qtutor import cli, evaluate
from qtutor.cli import generate
from qtutor.errors import QtutorError
from qtutor.measure import chat
from tests.calibration.test_records import TEMPLATE
from tests.cli.test_cli import refused
from tests.gguf.small_tokenizers import BOS, EOS, byte_level
from tests.measure.test_generation import small


@pytest.fixture
def pair():
    """A decoder of random weights whose tokenizer has a chat template."""
    tokenizer = byte_level("llama-bpe", bos=True)
    tokenizer.chat_template = TEMPLATE
    model = small(len(tokenizer), context=256, bos_token_id=None, eos_token_id=None)
    yield model, tokenizer
    tokenizer.chat_template = None


@pytest.fixture
def asked(pair, monkeypatch):
    """The conversations that were asked, in order; the answer to n messages is "answer n"."""
    conversations = []

    def answer(model, tokenizer, messages, most, streamer, cache):
        conversations.append([(message["role"], message["content"]) for message in messages])
        text = f"answer {len(messages)}"
        streamer.put(torch.tensor([0]))
        for number in tokenizer(text, add_special_tokens=False)["input_ids"]:
            streamer.put(torch.tensor([number]))
        streamer.end()
        return text

    monkeypatch.setattr(chat, "answer", answer)
    monkeypatch.setattr(generate, "load", lambda options: pair)
    return conversations


class Keyboard(io.StringIO):
    """A terminal with a person who types."""

    def isatty(self) -> bool:
        return True


def test_an_answer_is_printed_without_the_question(asked, capsys):
    for arguments in (["How many?", "--chat"], ["--chat", "How many?"], ["--chat", "--", "How many?"]):
        assert cli.main(["generate", "x/y", *arguments]) == 0
        assert capsys.readouterr().out == "answer 1\n" and asked.pop() == [("user", "How many?")]
    assert cli.main(["generate", "x/y", "--chat", "--", "--why"]) == 0 and asked == [[("user", "--why")]]


def test_a_conversation_goes_on_until_ctrl_d(asked, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", Keyboard("one\ntwo\n\nthree\n"))
    assert cli.main(["generate", "x/y", "--chat"]) == 0
    said = [("user", "one"), ("assistant", "answer 1"), ("user", "two")]
    assert asked == [said[:1], said, [("user", "three")]]  # an empty line starts a new one
    out, error = capsys.readouterr()
    assert out == "> answer 1\n> answer 3\n> > answer 1\n> \n" and "Ctrl-D" in error


def test_lines_of_a_file_are_conversations_of_their_own(asked, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\ntwo"))
    assert cli.main(["generate", "x/y", "--chat"]) == 0
    assert asked == [[("user", "one")], [("user", "two")]]
    assert capsys.readouterr() == ("answer 1\nanswer 1\n", "")


def test_the_beginning_is_forgotten_where_the_context_is_full(asked, monkeypatch, capsys, pair):
    long = "word " * 60
    assert len(chat.conversation_tokens(*pair, [{"role": "user", "content": long}])) > 70
    monkeypatch.setattr(sys, "stdin", Keyboard(f"{long}\n{long}\n{long}\nend\n"))
    assert cli.main(["generate", "x/y", "--chat"]) == 0
    assert all(conversation[0][0] == "user" for conversation in asked) and len(asked) == 4
    assert asked[-1][-1] == ("user", "end") and len(asked[-1]) < 7
    assert "no longer knows the beginning" in " ".join(capsys.readouterr().err.split())


def test_what_cannot_be_asked(pair, monkeypatch, capsys):
    assert "the text is missing" in refused(["generate", "embedded"], capsys)
    assert "no chat template" in refused(["generate", "embedded", "--chat", "x"], capsys)
    monkeypatch.setattr(generate, "load", lambda options: pair)
    assert "leaves no room in the model's context" in refused(["generate", "x/y", "--chat", "word " * 600], capsys)
    assert "goes after --" in refused_at_once(["generate", "x/y", "--what"], capsys)


def refused_at_once(arguments, capsys) -> str:
    with pytest.raises(SystemExit):
        cli.main(arguments)
    return " ".join(capsys.readouterr().err.split())


def test_an_answer_is_what_follows_the_template(pair):
    model, tokenizer = pair
    messages = [{"role": "user", "content": "def f"}]
    prompt = tokenizer(f"{BOS}user: def f{EOS}\n{BOS}assistant: ", add_special_tokens=False)["input_ids"]
    assert chat.conversation_tokens(model, tokenizer, messages) == prompt
    written = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0)[
        0, len(prompt) :
    ]
    assert evaluate.answer(model, tokenizer, messages, 12) == tokenizer.decode(written, skip_special_tokens=True)


def test_an_answer_ends_where_its_turn_does(pair, monkeypatch):
    """The end of the turn ends an answer, even if the checkpoint does not list this token as an end of text."""
    model, tokenizer = pair
    messages, end = [{"role": "user", "content": "def f"}], tokenizer.convert_tokens_to_ids(EOS)
    assert chat.answer_ends(model, tokenizer) == [end]
    model.generation_config.eos_token_id = [3, end]
    assert chat.answer_ends(model, tokenizer) == [3, end]
    model.generation_config.eos_token_id = None
    whole = evaluate.answer(model, tokenizer, messages, 12)
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(tokenizer)))
    steps = []

    def after_four(module, inputs, output):
        steps.append(1)
        if len(steps) > 4:
            output = output.clone()
            output[..., end] = 1e9
        return output

    model.lm_head.register_forward_hook(after_four)
    short = evaluate.answer(model, tokenizer, messages, 12)
    assert len(steps) == 5 and whole.startswith(short) and len(short) < len(whole)


def test_a_conversation_that_is_no_text(pair):
    with pytest.raises(QtutorError, match="no text that can be written as UTF-8"):
        chat.conversation_tokens(*pair, [{"role": "user", "content": "a \udcff b"}])


def test_the_speed_is_said_on_stderr_where_it_is_asked_for(asked, capsys):
    assert cli.main(["generate", "x/y", "How many?", "--chat"]) == 0
    assert capsys.readouterr().err == ""  # it is not a terminal
    assert cli.main(["generate", "x/y", "How many?", "--chat", "--speed"]) == 0
    said = capsys.readouterr()
    assert said.out == "answer 1\n" and said.err.startswith("qtutor: ") and "MB of weights" in said.err
