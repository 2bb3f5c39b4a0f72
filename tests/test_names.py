"""The public names, which scripts of users call."""

import dataclasses
import importlib.util
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

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
    *[
        "load",
        "load_decoder",
        "load_quantized",
        "perplexity",
        "plan",
        "quantize",
        "quantize_to",
        "rtn",
        "awq",
        "bnb",
        "gguf",
        "gptq",
    ],
]


def test_public_names_are_there_and_documented():
    assert sorted(qtutor.__all__) == sorted(NAMES) == dir(qtutor)
    for name in NAMES:
        assert inspect.getdoc(getattr(qtutor, name)), name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no public name 'quantise'"):
        _ = qtutor.quantise


@pytest.mark.parametrize(
    "program",
    [
        "import sys, qtutor.cli; qtutor.cli.build_parser(); assert 'torch' not in sys.modules",
        "import sys, qtutor.pipeline; assert 'transformers.modeling_utils' not in sys.modules",
    ],
    ids=["help", "a recipe and the pipeline"],
)
def test_nobody_waits_for_what_they_do_not_need(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_perplexity_needs_little_of_the_package():
    """It checks the model and the ids, and knows packed layers by their base class: 9 modules, with the package."""
    program = """
import sys, torch, qtutor
from transformers import LlamaConfig, LlamaForCausalLM
sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
model = LlamaForCausalLM(LlamaConfig(**sizes))
assert qtutor.perplexity(model, torch.arange(8)) > 1 and qtutor.evaluate.bits_per_weight(model) == 32
print(*(name for name in sys.modules if name.partition(".")[0] == "qtutor"))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    others = ("qtutor.runtime.kernels", "qtutor.runtime.linear", "qtutor.formats", "qtutor.calibration", "qtutor.core")
    assert "qtutor.measure.losses" in loaded and not [name for name in loaded if name.startswith(others)]
    assert len(loaded) <= 12, sorted(loaded)


# One function for each type; the module's docstring explains the formulas.
TOLD_BY_THEIR_MODULE = ("qtutor.gguf.decoding",)
# The function of an exercise, which its chapter describes, and its inputs.
TOLD_BY_THEIR_CHAPTER = "qtutor.course.exercises."

MODULES = [module.name for module in pkgutil.walk_packages(qtutor.__path__, "qtutor.")]


def test_all_modules_are_found():
    assert {"qtutor.recipe", "qtutor.pipeline.rounding", "qtutor.course.widgets.awq"} <= set(MODULES)
    folder = Path(qtutor.__file__).parent
    assert len(MODULES) == len(list(folder.rglob("*.py"))) - 1  # not qtutor/__init__.py


@pytest.mark.parametrize("name", MODULES)
def test_every_module_and_every_public_function_and_class_of_it_has_a_docstring(name):
    if name.endswith(".triton_product"):
        pytest.importorskip("triton", reason="triton is not installed, and this module imports it")
    module = importlib.import_module(name)
    assert module.__doc__
    if name in TOLD_BY_THEIR_MODULE or name.startswith(TOLD_BY_THEIR_CHAPTER):
        return
    for public, value in vars(module).items():
        ours = getattr(value, "__module__", None) == name and not public.startswith("_")
        if ours and callable(value) and hasattr(value, "__name__"):
            text = value.__doc__
            # Python gives a dataclass without a docstring its signature instead.
            assert text and not text.startswith(f"{value.__name__}("), f"{name}.{public}"


# What goes through a model block by block, or collects findings.
CHANGING = {
    "qtutor.calibration.block.CalibratedBlock",
    "qtutor.calibration.stream.Stream",
    "qtutor.course.workspace.Report",
    "qtutor.doctor.patient.Patient",
    "qtutor.runtime.lending.Loan",
    "qtutor.serving.scheduler.Request",
}


def test_values_do_not_change():
    """All other dataclasses are frozen: they can be shared, and kept as a key, without a copy."""
    found = {}
    for name in MODULES:
        if name.endswith(".triton_product") and importlib.util.find_spec("triton") is None:
            continue
        for value in vars(importlib.import_module(name)).values():
            if dataclasses.is_dataclass(value) and isinstance(value, type) and value.__module__ == name:
                found[f"{name}.{value.__name__}"] = value.__dataclass_params__.frozen
    assert len(found) > 50
    assert {name for name, frozen in found.items() if not frozen} == CHANGING
