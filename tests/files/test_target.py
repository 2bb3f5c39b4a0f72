"""Problems with OUT are reported before the work begins, and these checks leave nothing behind."""

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from qtutor.errors import QtutorError
from qtutor.files import target
from qtutor.files.staging import SUFFIX
from qtutor.files.target import checked, least_bytes, tensors_in
from tests.disks import NOBODY, as_nobody, needs_mount, needs_root


def refused(message, out, **options):
    """``out`` is refused, and the message matches and is one paragraph."""
    with pytest.raises(QtutorError, match=message) as told:
        checked(out, **{"folder": True} | options)
    assert "\n" not in str(told.value)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The current folder, with a checkpoint ``llama`` and a file ``a.gguf``; afterwards nothing else may be there."""
    here = tmp_path / "home"
    (here / "llama").mkdir(parents=True)
    (here / "llama" / "config.json").write_text("{}")
    (here / "a.gguf").write_text("GGUF")
    monkeypatch.chdir(here)
    yield here
    assert sorted(os.listdir(here)) == ["a.gguf", "llama"] and os.listdir(here / "llama") == ["config.json"]


INSIDE = ["llama", "llama/", "./llama", "llama/out", "llama/../llama/a/b", "../home/llama//out"]


@pytest.mark.parametrize("out", INSIDE)
@pytest.mark.parametrize("source", ["llama", "llama/", "./llama/../llama", "ABSOLUTE", "LINK"])
def test_the_source_is_not_written_to(home, tmp_path, out, source):
    (tmp_path / "link").symlink_to(home / "llama")
    source = {"ABSOLUTE": str(home / "llama"), "LINK": str(tmp_path / "link")}.get(source, source)
    refused("(the same as|inside) .*, which is read", out, sources=["not here", source])
    refused("(the same as|inside) .*, which is read", tmp_path / "link" / "out", sources=[source])
    refused("inside .*, which is read", f"{out}/model.gguf", sources=[source], folder=False)


def test_the_source_is_not_replaced_by_whatever_name(home, tmp_path):
    os.link(home / "a.gguf", tmp_path / "b.gguf")
    (tmp_path / "c.gguf").symlink_to(home / "a.gguf")
    for out in ("a.gguf", "../home/a.gguf", tmp_path / "b.gguf", tmp_path / "c.gguf"):
        refused("the same as a.gguf, which is read", out, sources=["a.gguf"], folder=False)
    assert checked("../b", folder=True, sources=["llama", "a.gguf"]) == tmp_path / "b"
    assert checked("../llama2", folder=True, sources=["llama"]) == tmp_path / "llama2"


def test_links_lead_to_where_it_is_written(home, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "out")
    assert checked(tmp_path / "out", folder=True) == tmp_path / "disk" / "out"
    assert checked(tmp_path / "out" / "a.gguf", folder=False) == tmp_path / "disk" / "out" / "a.gguf"
    (tmp_path / "round").symlink_to(tmp_path / "round")
    refused("a link that leads nowhere", tmp_path / "round")


def test_kinds(home, tmp_path):
    refused("a.gguf is a file, and a folder is to be written", "a.gguf")
    refused("a.gguf is a file, and .* needs a folder there", "a.gguf/out")
    refused("a.gguf is a file, and .* needs a folder there", "a.gguf/b/model.gguf", folder=False)
    refused("llama is a folder, and a file is to be written", "llama", folder=False)
    os.mkfifo(tmp_path / "pipe")
    refused("pipe is not an ordinary file", tmp_path / "pipe", folder=False)
    refused("null is not an ordinary file", "/dev/null", folder=False)
    refused("null is a file", "/dev/null")


def test_places_that_are_not_replaced(home, tmp_path):
    for out in (".", "", home, "llama/.."):
        refused("the folder that you are in", out)
    refused("the folder that you are in", "..")
    refused("the root of all folders", "/")
    refused("where a disk is mounted", "/proc")
    refused(r"is not a usable name \(embedded null byte\)", "a\0b")
    refused(r"'a\\udcff' is not a usable name .*'utf-8' codec", "a\udcff")


def test_what_nobody_may_write_stays(home, tmp_path):
    """Not even root may replace it, although the system would allow this."""
    (tmp_path / "kept.gguf").touch(0o444)
    (tmp_path / "kept").mkdir(0o555)
    for name in ("kept", "kept.gguf"):
        refused("is write-protected", tmp_path / name, folder=name == "kept")


def test_a_current_folder_that_is_gone(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    refused("is not a usable name", "out")
    assert checked(tmp_path / "out", folder=True) == tmp_path / "out"


@pytest.mark.parametrize("letter", ["n", "é", "🙂"])
def test_names_that_do_not_fit(home, tmp_path, letter):
    fits = letter * (os.pathconf(tmp_path, "PC_NAME_MAX") // len(letter.encode()))
    for out in (fits, f"{fits}/{fits}"):
        assert checked(tmp_path / out, folder=True).name == fits
        refused("the name .* has 25.* bytes, and .* allows 255", tmp_path / f"{out}{letter}")
    refused("its path has .* bytes", tmp_path / "/".join(["n" * 200] * 20))


def test_missing_folders_are_made_only_when_it_is_written(home, tmp_path):
    assert checked(tmp_path / "a" / "b" / "out", folder=True) == tmp_path / "a" / "b" / "out"
    assert os.listdir(tmp_path) == ["home"]


def test_room(home, tmp_path, monkeypatch):
    free = 10**9
    monkeypatch.setattr(target.shutil, "disk_usage", lambda base: SimpleNamespace(total=total, free=free))
    total = 10**12
    assert checked(tmp_path / "out", folder=True, need=free) == tmp_path / "out"
    refused(
        r"at least 1,000,000,001 bytes, and 1,000,000,000 are free on the disk of ", tmp_path / "out", need=free + 1
    )
    total = free = 0  # a file system that gives no sizes
    assert checked(tmp_path / "out", folder=True, need=1) == tmp_path / "out"


def test_left_overs_make_room_first(home, tmp_path):
    (tmp_path / f".out.01234567{SUFFIX}" / "new").mkdir(parents=True)
    checked(tmp_path / "out", folder=True)
    assert os.listdir(tmp_path) == ["home"]


def test_the_least_that_it_takes(tmp_path):
    save_file(
        {
            "model.embed_tokens.weight": np.zeros((100, 8), np.float16),
            "model.layers.0.mlp.up_proj.weight": np.zeros((30, 8), np.float16),
            "model.layers.0.norm.weight": np.zeros(8, np.float16),
        },
        tmp_path / "model.safetensors",
    )
    save_file({"model.layers.0.again.weight": np.zeros((30, 8))}, tmp_path / "model-00001-of-00002.safetensors")
    assert least_bytes(tensors_in(tmp_path), 4) == 1600 + 30 * 8 // 2 + 16
    assert least_bytes(tensors_in(tmp_path), 4.5, everywhere=True) == 800 * 4.5 / 8 + 240 * 4.5 / 8 + 16
    assert least_bytes(tensors_in(tmp_path), 32) == 1600 + 480 + 16  # a matrix counts at most its bytes in the file
    (tmp_path / "model.safetensors").unlink()
    assert least_bytes(tensors_in(tmp_path), 8) == 240
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"damaged")
    assert list(tensors_in(tmp_path)) == list(tensors_in("some/hub-id")) == []


CHECK = """
import sys
from qtutor.errors import QtutorError
from qtutor.files.target import checked
try: print(checked(sys.argv[1], folder=sys.argv[2] == "folder"))
except QtutorError as error: print("refused:", error)
"""


def check_elsewhere(path, folder: bool, mount: str) -> str:
    """Check in another process, which mounts a disk first."""
    command = [sys.executable, "-c", CHECK, str(path), "folder" if folder else "file"]
    command = ["unshare", "-rm", "sh", "-c", f'{mount} && "$@"', "sh", *command]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_mount
@pytest.mark.parametrize("folder", [True, False])
def test_a_read_only_disk_is_told(tmp_path, folder):
    mount = f"mount --bind {tmp_path} {tmp_path} && mount -o remount,ro,bind {tmp_path}"
    assert "refused: " in (told := check_elsewhere(tmp_path / "out", folder, mount=mount))
    assert "out cannot be written: Read-only file system" in told


@needs_mount
@pytest.mark.parametrize("how", ["-t tmpfs tmpfs", "--bind /var"])
def test_a_mounted_folder_is_not_replaced(tmp_path, how):
    for name in ("out", "with space"):
        (tmp_path / name).mkdir()
        told = check_elsewhere(tmp_path / name, True, mount=f"mount {how} '{tmp_path / name}'")
        assert "is where a disk is mounted" in told
        told = check_elsewhere(tmp_path / name / "in", True, f"mount -t tmpfs tmpfs '{tmp_path / name}'")
        assert told == f"{tmp_path / name / 'in'}\n"


@pytest.fixture
def open_to_all():
    """A folder that other users can reach: pytest's own folders are closed to them."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


@needs_root
def test_what_may_not_be_written(open_to_all):
    """OUT belongs to another user, or is protected. The checks do not run as root, who may write everywhere."""
    (open_to_all / "closed").mkdir(mode=0o755)
    told = as_nobody(lambda: checked(open_to_all / "closed" / "out", folder=True))
    assert told.startswith("QtutorError") and "out cannot be written: Permission denied" in told
    open_to_all.chmod(0o1777)  # like /tmp: nobody can remove files of other users
    (open_to_all / "a.gguf").touch()
    (open_to_all / "a.gguf").chmod(0o666)
    (open_to_all / "out").mkdir()
    (open_to_all / "out").chmod(0o777)
    (open_to_all / "kept").mkdir()
    os.chown(open_to_all / "kept", NOBODY, NOBODY)
    (open_to_all / "kept").chmod(0o555)
    for name in ("a.gguf", "out", "kept"):
        told = as_nobody(lambda name=name: checked(open_to_all / name, folder=name != "a.gguf"))
        assert "is write-protected, or another user's" in told
    (open_to_all / "kept").chmod(0o755)
    assert as_nobody(lambda: checked(open_to_all / "kept", folder=True)) == str(open_to_all / "kept")


def test_two_checks_at_once_do_not_disturb_each_other(tmp_path):
    found, threads = [], []

    def check():
        found.extend(checked(tmp_path / "out", folder=True) for _ in range(50))

    for _ in range(4):
        threads.append(threading.Thread(target=check))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert len(found) == 200 and os.listdir(tmp_path) == []
