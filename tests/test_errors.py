"""Errors: the caller puts the subject in front of the message, and only once."""

import pytest

from qtutor.errors import QtutorError, check_choice, naming
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
