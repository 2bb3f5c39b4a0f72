"""Benchmarks run rarely, and by hand. So these tests check that all names that they import from the package exist."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

HERE = Path(__file__).parent.parent
SCRIPTS = sorted((HERE / "benchmarks").rglob("*.py"))


def names_of_the_package(script: Path) -> set[tuple[str, str]]:
    """(module, attribute) of a script's imports from qtutor, and of the attributes that it uses of these modules."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    modules, found = {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or "qtutor": "qtutor" for alias in node.names if alias.name.startswith("qtutor")}
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "qtutor":
            for alias in node.names:
                found.add((node.module, alias.name))
                value = value_of(node.module, alias.name)
                if inspect.ismodule(value):
                    modules[alias.asname or alias.name] = value.__name__
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            found.add((modules[node.value.id], node.attr))
    return found


def value_of(module: str, name: str):
    """``module.name``, an attribute or a submodule; ``None`` if there is neither."""
    value = getattr(importlib.import_module(module), name, None)
    try:
        return importlib.import_module(f"{module}.{name}") if value is None else value
    except ImportError:
        return None


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_what_a_benchmark_takes_from_the_package_is_there(script):
    missing = [name for name in names_of_the_package(script) if value_of(*name) is None]
    assert missing == []


def test_most_of_them_use_it():
    assert sum(bool(names_of_the_package(script)) for script in SCRIPTS) > 10
