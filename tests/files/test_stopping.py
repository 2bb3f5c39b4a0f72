"""A request to stop ends a command as Ctrl-C does, and ends nothing else in the process."""

import contextlib
import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest

from qtutor import cli
from qtutor.errors import QtutorError
from qtutor.files import written_beside
from qtutor.files.stopping import Stopped, signals_raise

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.fixture(autouse=True)
def nothing_is_ignored():
    """Set the default handlers: a shell's background programs ignore SIGINT, and programs under nohup ignore SIGHUP."""
    default = {number: signal.SIG_DFL for number in STATUS} | {signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in default.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STATUS)
def test_a_command_that_is_stopped_cleans_up_and_says_so(tmp_path, monkeypatch, capsys, number):
    path = tmp_path / "out"
    path.write_text("old")

    def run(options):
        with written_beside(path) as new:
            new.write_text("half of it")
            os.kill(os.getpid(), number)

    parser = SimpleNamespace(parse_args=lambda argv: SimpleNamespace(run=run))
    monkeypatch.setattr(cli, "build_parser", lambda: parser)
    before = signal.getsignal(number)
    assert cli.main([]) == STATUS[number]
    assert capsys.readouterr().err == "\nqtutor: stopped.\n"
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["out"]
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("later", [QtutorError("config.json is no config."), OSError("no file"), NameError("torch")])
def test_a_request_that_a_library_catches_is_not_forgotten(monkeypatch, capsys, number, later):
    """transformers' imports catch every exception inside them, and their own error later names the wrong cause."""

    def run(options):
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), number)
            time.sleep(5)  # the request arrives here
        raise later

    parser = SimpleNamespace(parse_args=lambda argv: SimpleNamespace(run=run))
    monkeypatch.setattr(cli, "build_parser", lambda: parser)
    assert cli.main([]) == STATUS[number]
    assert capsys.readouterr().err == "\nqtutor: stopped.\n"


def test_a_request_that_did_not_hinder_the_work_is_no_error(monkeypatch, capsys):
    def run(options):
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        return 0

    parser = SimpleNamespace(parse_args=lambda argv: SimpleNamespace(run=run))
    monkeypatch.setattr(cli, "build_parser", lambda: parser)
    assert cli.main([]) == 0 and capsys.readouterr().err == ""


def test_handlers_are_set_back(monkeypatch):
    for after in (None, KeyError):
        try:
            with signals_raise():
                assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
                if after:
                    raise after
        except KeyError:
            pass
        assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_what_others_set_stays():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number)), signal.getsignal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with signals_raise():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGHUP)
        assert heard == [signal.SIGTERM] and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGHUP, before[1])


def test_in_another_thread_nothing_is_set():
    found = []

    def run():
        with signals_raise():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]


def test_no_handler_for_exceptions_catches_it():
    assert not issubclass(Stopped, Exception) and str(Stopped(signal.SIGTERM)) == "SIGTERM"
