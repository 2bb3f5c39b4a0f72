"""Write a function from a notebook to a file so that it works alone: its source, and everything it refers to.

The file also gets modules (as imports), functions and classes of installed libraries (as imports), simple constants,
and other functions by the learner. Everything else, such as a tensor or a model, is refused by name, because a file
cannot hold it in a line. Left out: names that are looked up indirectly (``globals()["x"]``). They are found when the
kept file is checked.
"""

import __future__

import ast
import builtins
import dis
import inspect
import sys
import textwrap
import types
from collections.abc import Callable

from qtutor.course.checking.attempt import LIBRARIES

# Libraries with functions and aliases whose ``__module__`` does not name the library.
PROBABLY = ("torch", "numpy", "math", "typing", "collections.abc", "torch.nn.functional")


class CannotKeep(Exception):
    """The reason why a function cannot be kept in a file of its own, as a text for the learner."""


def standalone(function: Callable, title: str) -> str:
    """The text of a Python file with ``function``, what it needs, and ``answer = function``. Raises CannotKeep."""
    if not inspect.isfunction(function):
        raise CannotKeep(f"it is a {type(function).__name__}; write it as a function with def")
    parts = _Parts(function.__globals__)
    parts.add_function(function)
    head = f"# {title}\n"
    if function.__code__.co_flags & __future__.annotations.compiler_flag:
        head += "\nfrom __future__ import annotations\n"
    simple = ["\n".join(sorted(parts.imports)), "\n".join(parts.constants)]
    sections = [*simple, *(f"\n{text}" for text in parts.functions)]
    body = "\n\n".join(text for text in [*sections, f"\nanswer = {function.__name__}"] if text)
    return f"{head}\n{body}\n"


class _Parts:
    """Imports, constants and functions, collected while following what a function refers to."""

    def __init__(self, names: dict):
        self.names = names
        self.imports: set[str] = set()
        self.constants: list[str] = []
        self.functions: list[str] = []
        self.seen: dict[str, object] = {}  # what each name of the file stands for

    def add_function(self, function: types.FunctionType) -> None:
        if function.__name__ == "<lambda>":
            raise CannotKeep("it is a lambda; write it as a function with def")
        if function.__globals__ is not self.names:
            raise CannotKeep(f"{function.__name__} comes from a module of yours; copy it into the notebook")
        if function.__code__.co_freevars:
            raise CannotKeep(
                f"{function.__name__} uses {function.__code__.co_freevars[0]}, a variable of the function around it"
            )
        if hasattr(function, "__wrapped__"):
            raise CannotKeep(f"{function.__name__} is wrapped by a decorator; remove the decorator")
        try:
            source = textwrap.dedent(inspect.getsource(function))
            definition = ast.parse(source).body[0]
        except (OSError, SyntaxError):
            raise CannotKeep(f"the source of {function.__name__} cannot be found; define it in a cell") from None
        if not isinstance(definition, ast.FunctionDef) or definition.name != function.__name__:
            raise CannotKeep(f"the source of {function.__name__} is not a plain def; define it in a cell of its own")
        if self.seen.setdefault(function.__name__, function) is not function:
            raise CannotKeep(f"two of its parts are called {function.__name__}; give them different names")
        for name in sorted(_global_names(function.__code__) | _names_of_signature(definition)):
            self.add(name)
        self.functions.append(source.strip())  # after those that it refers to

    def add(self, name: str) -> None:
        """Add what ``name`` stands for in the notebook."""
        if name not in self.names and hasattr(builtins, name):
            return
        if name not in self.names:
            raise CannotKeep(f"it refers to {name}, which is not defined")
        value = self.names[name]
        if name in self.seen and self.seen[name] is value:
            return
        if inspect.isfunction(value) and value.__name__ == name and not _library_of(name, value):
            self.add_function(value)
            return
        if self.seen.setdefault(name, value) is not value:
            raise CannotKeep(f"two of its parts are called {name}; give them different names")
        if isinstance(value, types.ModuleType):
            if not _is_library(value):
                raise CannotKeep(f"it uses {name}, a module of yours; copy what it needs into the notebook")
            self.imports.add(f"import {value.__name__}" + (f" as {name}" if name != value.__name__ else ""))
        elif found := _library_of(name, value):
            self.imports.add(f"from {found[0]} import {found[1]}" + (f" as {name}" if name != found[1] else ""))
        elif _is_constant(value):
            self.constants.append(f"{name} = {value!r}")
        elif inspect.isfunction(value):
            if self.seen.get(value.__name__) is not value:
                self.add_function(value)
            self.functions.append(f"{name} = {value.__name__}")
        else:
            raise CannotKeep(f"it uses {name}, a {type(value).__name__} of the notebook; pass it as an argument")


def _global_names(code: types.CodeType) -> set[str]:
    """Names that the code, and functions inside it, look up outside of it."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def _names_of_signature(definition: ast.FunctionDef) -> set[str]:
    """Names that are looked up when the function is defined: in annotations, defaults and decorators."""
    parts = [definition.args, *definition.decorator_list, *([definition.returns] if definition.returns else [])]
    return {node.id for part in parts for node in ast.walk(part) if isinstance(node, ast.Name)}


def is_library_code(function) -> bool:
    """Whether a function comes from the package or an installed library, not from the learner."""
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    return inspect.isroutine(function) and module is not None and _is_library(module)


def _is_library(module: types.ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return module.__name__ != "__main__" and (file is None or file.startswith(LIBRARIES))


def _library_of(name: str, value) -> tuple[str, str] | None:
    """(installed module, name in it) of ``value``, if it is a function, class or type of a library."""
    if _is_constant(value):
        return None
    for own in (getattr(value, "__module__", None), *PROBABLY):
        module = sys.modules.get(own) if isinstance(own, str) else None
        if module is not None and _is_library(module):
            for candidate in (getattr(value, "__name__", name), name):
                if getattr(module, candidate, None) is value:
                    return module.__name__, candidate
    return None


def _is_constant(value) -> bool:
    """Whether ``repr`` writes the value down completely: numbers, texts, and lists and dicts of them."""
    try:
        return type(value) in (int, float, str, bool, bytes, type(None), tuple, list, dict) and (
            ast.literal_eval(repr(value)) == value
        )
    except (ValueError, SyntaxError):
        return False
