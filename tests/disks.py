"""Full or closed disks, and users who may not write, if this machine lets a test create them."""

import os
import shutil
import subprocess
from collections.abc import Callable

import pytest

NOBODY = 65534


def _may_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True).returncode == 0


def as_nobody(function: Callable[[], object]) -> str:
    """The result or the error of a function, as text, in a process whose user owns no files."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            text = str(function())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writing, text.encode())
        os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as file:
        text = file.read()
    os.wait()
    return text


needs_mount = pytest.mark.skipif(not _may_mount(), reason="a small disk takes a user who may mount one in a namespace")
needs_root = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can become another user")
