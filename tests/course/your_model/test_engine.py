"""llama.cpp is called if it is installed. Whatever goes wrong, the notebook gets a message."""

import subprocess

import pytest

import qtutor
from qtutor.course.your_model import engine


@pytest.mark.skipif(not engine.is_here(), reason="llama.cpp comes with xllamacpp, which is not installed here")
def test_llama_cpp_answers_as_our_code_does(loaded, tmp_path):
    file = qtutor.export(loaded[0], tmp_path / "a.gguf", format="gguf", type="Q8_0", tokenizer=loaded[1])
    assert engine.said(file, ">>> 17 + 25\n", 6, chat=False).startswith("42\n")


@pytest.mark.skipif(not engine.is_here(), reason="llama.cpp comes with xllamacpp, which is not installed here")
def test_a_file_that_llama_cpp_refuses_ends_in_words(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF and nothing more")
    assert "and no answer)" in engine.said(tmp_path / "a.gguf", "hello", 4)


def test_without_llama_cpp_it_says_what_to_type(monkeypatch):
    monkeypatch.setattr(engine, "is_here", lambda: False)
    assert engine.said("a.gguf", "hello") == "(llama.cpp is not installed here; pip install xllamacpp installs it)"


def test_an_engine_that_hangs_is_left(monkeypatch):
    def late(*given, **more):
        raise subprocess.TimeoutExpired("python", 120)

    monkeypatch.setattr(engine, "is_here", lambda: True)
    monkeypatch.setattr(engine.subprocess, "run", late)
    assert engine.said("a.gguf", "hello") == "(llama.cpp did not answer within 120 seconds)"
