"""The breathing ruler of chapter 01: one number over the levels of several formats, from 2^-30 to 2^20.

Its script (live/ruler.js) rounds by the formula, so ticks and errors need no kernel. Pages without scripts show the
picture of the worst error at every size.
"""

from collections.abc import Sequence

import numpy as np
import torch

from qtutor.core.numbers import FloatFormat, IntFormat
from qtutor.course.widgets.frames import frame
from qtutor.course.widgets.live import Live, live
from qtutor.errors import QtutorError
from qtutor.plots.numbers import worst_over_sizes

LOW, HIGH = -30, 20  # powers of two
START, FROM = 2.3, -3.0  # where the number is at first, and where its trail begins
CELLS = 16  # points of the stored picture for each octave
MOST = 6  # formats: the script has six colours
ALT = (
    "The largest relative rounding error against the size of the number, both logarithmic. Each float is a flat "
    "sawtooth over its range, a tooth for every power of two: fp32 lowest, then fp16, bf16, e4m3, e5m2. To the left of "
    "its range each rises to 1. fp16 and e5m2 end where infinity begins, e4m3 rises. int8 is a valley: under 1 per "
    "cent just below the top of its range, rising to both sides."
)


def ruler(formats: Sequence[FloatFormat | IntFormat]) -> Live:
    """The widget. Raises :class:`QtutorError` for more than six formats, and for none."""
    if not 0 < len(formats) <= MOST:
        raise QtutorError(f"the ruler cannot show {len(formats)} formats: give 1 to {MOST} of them.")
    data = {"formats": [described(fmt) for fmt in formats], "start": START, "from": FROM}
    powers = np.arange(LOW, HIGH, 1 / CELLS) + 0.5 / CELLS
    lines = {fmt.name: worst_errors(fmt, powers) for fmt in formats}
    still = frame((worst_over_sizes(powers, lines), ""), ALT, small=True)
    return live("ruler", data, still, "A ruler from 2 to the -30 up to 2 to the 20, with the levels of several formats")


def described(fmt: FloatFormat | IntFormat) -> dict:
    """The data of a format that the script needs."""
    if isinstance(fmt, IntFormat):
        name = fmt.name if fmt.scale == 1 else f"{fmt.name} × {fmt.scale:g}"
        return {"name": name, "kind": "int", "scale": fmt.scale, "largest": fmt.largest}
    return {
        "name": fmt.name,
        "kind": "float",
        "mantissa": fmt.mantissa_bits,
        "lowest": 1 - fmt.bias,
        "largest": fmt.largest,
        "infinite": fmt.specials == "ieee",
    }


def worst_errors(fmt: FloatFormat | IntFormat, powers: np.ndarray) -> np.ndarray:
    """The worst relative error of numbers of the size ``2**power``, float64; NaN where they become infinite.

    The worst error is half of a step: no number is farther from its nearest neighbour. An error of 1 means that the
    number becomes 0. Beyond the largest number of a format without infinity, the error is that of the number itself.
    """
    x = torch.from_numpy(2.0**powers)
    if isinstance(fmt, IntFormat):
        step = torch.tensor(fmt.scale)
    else:
        exponents = (torch.frexp(x).exponent - 1).clamp(min=1 - fmt.bias)  # below that, steps stay the same
        step = 2.0 ** (exponents - fmt.mantissa_bits).double()
    rounded = fmt.round(x)
    errors = torch.where(x > fmt.largest, (rounded - x).abs() / x, (step / 2 / x).clamp(max=1))
    return torch.where(rounded.isinf(), torch.nan, errors).numpy()
