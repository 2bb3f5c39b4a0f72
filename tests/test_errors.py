"""Errors: the caller puts the subject in front of the message, and only once."""

import inspect
import warnings

import pytest
import torch

from qtutor.errors import QtutorError, check_choice, naming, warn
from qtutor.methods.gptq import HessianError


def said(*subjects: str, error: Exception) -> str:
    """The message of ``error`` after it has left ``naming`` of all ``subjects``, the innermost first."""
    with pytest.raises(type(error)) as caught:
        if subjects:
            with naming(subjects[-1]):
                raise_inside(subjects[:-1], error)
        raise error
    assert caught.value is error
    return str(error)


def raise_inside(subjects: tuple[str, ...], error: Exception) -> None:
    if not subjects:
        raise error
    with naming(subjects[-1]):
        raise_inside(subjects[:-1], error)


def test_the_subject_is_put_in_front_and_the_type_stays():
    assert said("q_proj", error=QtutorError("1 of 64 weights are NaN.")) == "q_proj: 1 of 64 weights are NaN."
    assert said("q_proj", error=HessianError("the Hessian holds nan.")) == "q_proj: the Hessian holds nan."


def test_nested_subjects_stand_once_each():
    assert said("q", "q", error=QtutorError("broken.")) == "q: broken."
    assert said("q", "layers.0", error=QtutorError("broken.")) == "layers.0: q: broken."
    assert said("q", error=QtutorError("q_proj: broken.")) == "q: q_proj: broken."  # begins alike, but is different


def test_other_errors_and_no_error_pass_as_they_are():
    assert said("q", error=KeyError("k")) == "'k'"
    assert said("q", error=ValueError("v")) == "v"
    with naming("q"):
        value = 3
    assert value == 3


def test_an_unknown_choice_lists_the_known_ones():
    check_choice("clip", "mse", ("none", "mse"))
    with pytest.raises(QtutorError, match=r"^clip = None: choose one of 'none', 'mse'\.$"):
        check_choice("clip", None, ("none", "mse"))


def test_a_warning_shows_the_line_outside_of_the_package():
    """Functions of others may lie between: a progress bar, or a learner's own. Lines of the package tell little."""
    own = {"__name__": "qtutor.somewhere", "warn": warn}
    exec(compile("def inner():\n    warn('a')\n\ndef outer(between):\n    between(inner)", "inside.py", "exec"), own)
    for outer in (own["outer"], torch.no_grad()(own["outer"])):
        with pytest.warns(UserWarning, match="^a$") as told:
            line = inspect.currentframe().f_lineno + 1
            outer(lambda inner: inner())
        assert [(one.filename, one.lineno, one.category) for one in told] == [(__file__, line, UserWarning)]
    with pytest.warns(UserWarning, match="^b$") as told:
        warn("b")
    assert [one.filename for one in told] == [__file__]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for _ in range(3):  # the same words at the same line are shown once
            warn("c")
    assert len(told) == 1
