"""The public names that other people's scripts call."""

import inspect
import subprocess
import sys

import pytest

import qtutor

NAMES = [
    *[
        "IntGrid",
        "QtutorError",
        "QuantizedTensor",
        "Recipe",
        "add_outliers",
        "decoder",
        "evaluate",
        "export",
        "generate",
    ],
    *["load", "load_decoder", "load_quantized", "perplexity", "quantize", "rtn", "awq", "bnb", "gguf", "gptq"],
]


def test_public_names_are_there_and_documented():
    assert sorted(qtutor.__all__) == sorted(NAMES) == dir(qtutor)
    for name in NAMES:
        assert inspect.getdoc(getattr(qtutor, name)), name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no public name 'quantise'"):
        _ = qtutor.quantise


def test_help_does_not_wait_for_torch():
    program = "import sys, qtutor.cli; qtutor.cli.build_parser(); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_function_and_class_of_the_package_has_a_docstring():
    methods, core = (
        ["rtn", "awq", "gptq", "bnb"],
        [
            "grid",
            "packing",
            "quantized",
            "linear",
            "walk",
            "stream",
            "moments",
            "precision",
            "mapped",
            "propagation",
            "families",
            "clip",
        ],
    )
    for module in (*methods, *core, "recipe", "pipeline", "calibrate", "evaluate", "storage", "plots"):
        module = __import__(f"qtutor.{module}", fromlist=["*"])
        assert module.__doc__
        for name, value in vars(module).items():
            ours = getattr(value, "__module__", None) == module.__name__
            if ours and not name.startswith("_") and (inspect.isfunction(value) or inspect.isclass(value)):
                assert inspect.getdoc(value), f"{module.__name__}.{name}"
