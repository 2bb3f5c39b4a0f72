"""The folder for compiled code, and the message for a person who waits for the compiler."""

import time

from qtutor import compiling


def test_another_source_is_another_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    source = tmp_path / "a.py"
    source.write_text("1")
    first = compiling.cache_folder("loops", [source])
    assert first == compiling.cache_folder("loops", [source]) and first.startswith(str(tmp_path / "qtutor" / "loops-"))
    source.write_text("2")
    assert compiling.cache_folder("loops", [source]) != first


def test_no_folder_where_none_can_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    assert compiling.cache_folder("loops", []) is None


def test_who_waits_at_a_terminal_is_told(monkeypatch, capsys):
    monkeypatch.setattr(compiling, "SLOW", 0.01)
    with compiling.told_if_slow("the loops"):
        time.sleep(0.2)
    assert capsys.readouterr().err == ""  # not a terminal
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with compiling.told_if_slow("the loops"):
        time.sleep(0.3)
    assert "compiling the loops" in capsys.readouterr().err
    with compiling.told_if_slow("the loops"):
        pass
    time.sleep(0.1)
    assert capsys.readouterr().err == ""  # quick enough
