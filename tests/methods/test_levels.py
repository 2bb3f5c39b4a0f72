"""GPTQ and AWQ on the levels of small floats: on the embedded decoder they lose less than rounding to nearest."""

import pytest

import qtutor
from qtutor.decoder.text import calibration_tokens, held_out_tokens
from qtutor.measure.against import compare

MARGIN = 0.8  # measured shares of the divergence: GPTQ 0.5 to 0.6, AWQ 0.6 to 0.7, NVFP4 0.65 of MXFP4's


@pytest.fixture(scope="module")
def loss():
    """A function of levels and method: the KL divergence from the float decoder, in nats per token."""
    exact, tokenizer = qtutor.load_decoder()
    text = held_out_tokens(tokenizer)[:4096]

    def of(levels: str, method: str, clip: str = "auto") -> float:
        model, _ = qtutor.load_decoder()
        recipe = qtutor.Recipe(method, levels=levels, clip=clip)
        calibration = calibration_tokens()[:12] if recipe.needs_calibration else None
        qtutor.quantize(model, recipe, calibration, progress=False)
        return compare(model, exact, text).kl

    return of


@pytest.mark.parametrize("levels", ["mxfp4", "nvfp4"])
def test_text_helps_as_much_as_on_integers(loss, levels):
    nearest = loss(levels, "rtn")
    assert 0 < loss(levels, "gptq") < MARGIN * nearest
    assert 0 < loss(levels, "awq", "none") < MARGIN * nearest  # without its search of ranges, which takes long


def test_blocks_of_16_with_better_scales_lose_less_than_blocks_of_32(loss):
    """NVFP4 has 4.5 bits per weight, MXFP4 has 4.25."""
    assert loss("nvfp4", "rtn") < MARGIN * loss("mxfp4", "rtn")
