"""nbval compares text; this plugin makes it compare numbers as numbers: ``pytest -p tests.notebook_numbers --nbval``.

Sums differ in the last bit between CPUs: their vectors have different widths, so they add in different orders.
Sometimes a printed number therefore differs in its last place. Without tolerance, a correct chapter would then fail.

- A *measured* number (it has a decimal point, an exponent or a percent sign) may differ by 2 units of its last printed
  place or by 1 %, whichever is more. So ``-0.00 %`` is near ``+0.00 %``, and ``24.86`` is not near ``26.10``.
- A *count* is a whole number before "of" and another whole number (``117 of 150``). It may also differ by 2 units or
  1 %: a counted item may be close to the limit.
- Any other *whole* number is exact: bytes, shapes, codes and tokens are the same everywhere. A difference of one byte
  is a bug.
- All other text is exact. This includes digits inside names (``layers.3``, ``Q4_K``, ``fp16``, ``0x3f``), and code
  between triple backticks.
- Several blanks count as one blank, and three or more dashes as three. Blanks beside a number and at the ends of a line
  are ignored, because columns shift if a number gets one more digit. Line ends count: an extra or a missing row is a
  difference.

A cell may request more tolerance in its metadata, and has to give a reason. The other keys may be left out::

    "qtutor": {"share": 0.05, "units": 3, "whole": 2, "reason": "codes flip, and with them ..."}

share: part of the larger number. units: of the last printed place. whole: by how much whole numbers may differ. A cell
with the tag nbval-ignore-output only has a reason.
A chapter about a model from another package (:data:`NEEDS`) is compared if that package is installed. Otherwise the
chapter's cells still run, with a different model, and must not fail.
nbval does the rest: it decides which outputs are compared, checks their count, and replaces what
tests/nbval_sanitize.cfg lists. HTML is compared, pictures are not.
"""

import re
from dataclasses import dataclass
from itertools import zip_longest

from nbval.plugin import IPyNbCell

from qtutor.formats import smollm2
from tests.capability import without_amx

without_amx()  # the notebooks' kernels inherit it


@dataclass(frozen=True)
class Tolerance:
    """By how much numbers may differ: a part of the larger one, units of the last printed place, whole numbers."""

    share: float = 0.01
    units: float = 2
    whole: int = 0


USUAL = Tolerance()
# Chapter -> a function that tells whether the model of its stored outputs is installed.
NEEDS = {"11_your_model.ipynb": smollm2.is_here}


@dataclass(frozen=True)
class Number:
    """A number as it was printed: its value, one unit of its last printed place, whether it was measured or counted.

    A number that is neither measured nor counted is exact.
    """

    text: str
    sign: str
    value: float
    place: float
    measured: bool
    counted: bool


# The exponent's sign is required: Python always prints it, and 3e10 in a hex dump is not a number. Digits that touch a
# letter or another point are not numbers either: layers.3, Q4_K, 2.12.0.
NUMBER = re.compile(
    r"""(?<![\w.]) (?P<sign>[-+−]?)
        (?P<whole>\d{1,3}(?:,\d{3})+(?!\d) | \d+) (?P<fraction>\.\d+)? (?P<exponent>[eE][-+]\d+)?
        (?P<percent>[ ]?%)? (?! \w | \.\d ) (?P<count>(?=[ ]of[ ]\d))?""",
    re.VERBOSE,
)
CODE = re.compile(r"(```.*?```)", re.DOTALL)
# How much of a line is shown on either side of a difference: a widget's HTML has lines of 300,000 characters.
AROUND = 60
LINE_END = "\n"


def tolerance_of(metadata: dict) -> Tolerance:
    """The tolerance in a cell's metadata; ValueError if the reason or the numbers are missing, or a key is unknown."""
    if "qtutor" not in metadata:
        return USUAL
    asked = dict(metadata["qtutor"])
    if not str(asked.pop("reason", "")).strip():
        raise ValueError(f"a cell asks for a tolerance ({asked}) and gives no reason")
    ignored = "nbval-ignore-output" in metadata.get("tags", [])  # it has only a reason
    if not (asked or ignored) or not set(asked) <= set(Tolerance.__annotations__):
        raise ValueError(f"a cell's tolerance has share, units and whole, not {sorted(asked)}")
    return Tolerance(**asked)


def number_in(match: re.Match) -> Number:
    """The number that NUMBER matched."""
    sign, fraction, exponent = match["sign"], match["fraction"] or "", match["exponent"] or ""
    digits = match["whole"].replace(",", "") + fraction + exponent
    return Number(
        text=match[0],
        sign=sign,
        value=float(digits) * (-1 if sign in ("-", "−") else 1),
        place=10.0 ** (int(exponent[1:] or 0) - max(len(fraction) - 1, 0)),
        measured=bool(fraction or exponent or match["percent"]),
        counted=match["count"] is not None,
    )


def pieces(text: str) -> list[str | Number]:
    """The numbers of a text and the words between them, in order, without blanks and dashes that only fill columns."""
    found = []
    for part in CODE.split(text):
        end = 0
        for match in () if part.startswith("```") else NUMBER.finditer(part):
            found += [_levelled(part[end : match.start()]), number_in(match)]
            end = match.end()
        found.append(part if part.startswith("```") else _levelled(part[end:]))
    return [piece for piece in found if piece != ""]


def _levelled(text: str) -> str:
    """Text between two numbers, without the blanks and dashes that only fill a column."""
    text = re.sub(r"-{3,}", "---", re.sub(r"[ \t]+", " ", text))
    return re.sub(r" ?\n ?", "\n", text).strip(" ")


def near(reference: Number, computed: Number, tolerance: Tolerance) -> bool:
    """Whether two numbers are so close that a different CPU explains the difference."""
    if {reference.sign, computed.sign} == {"+", ""}:
        return False  # printed differently. But + and -, or - and no sign, are two sides of zero and may be near
    return abs(reference.value - computed.value) <= allowed(reference, computed, tolerance)


def allowed(reference: Number, computed: Number, tolerance: Tolerance) -> float:
    """How far apart two numbers may be."""
    # %g drops zeros and prints 15 for 15.0. Then the other number has the last place.
    measured = [number for number in (reference, computed) if number.measured]
    if not measured and not (reference.counted and computed.counted):
        return tolerance.whole
    measured = measured or [reference]  # counts
    place = max(number.place for number in measured)
    larger = max(abs(reference.value), abs(computed.value))
    # The added term is for float rounding: 0.3 - 0.1 should be 2 units of 0.1, but may be a little more.
    return max(tolerance.units * place, tolerance.share * larger) + 1e-9 * (place + larger)


def difference(reference: str, computed: str, tolerance: Tolerance = USUAL) -> str | None:
    """A sentence about the first place where two outputs differ, or None if they are near."""
    if str(reference) == str(computed):  # nearly always so, and much faster
        return None
    before = ""
    for left, right in zip_longest(pieces(reference), pieces(computed), fillvalue=""):
        numbers = isinstance(left, Number) and isinstance(right, Number)
        if not (near(left, right, tolerance) if numbers else left == right):
            break
        before += left.text if numbers else left
    else:
        return None
    bound = f"; allowed is {allowed(left, right, tolerance):.3g}" if numbers else ""
    left, right = (piece.text if isinstance(piece, Number) else piece for piece in (left, right))
    start = 0 if numbers else _same_words(left, right)
    before += left[:start]
    return (
        f"line {before.count(LINE_END) + 1}, after {before.rpartition(LINE_END)[2][-AROUND:]!r}: "
        f"{left[start : start + AROUND]!r} was stored, {right[start : start + AROUND]!r} came out{bound}"
    )


def _same_words(left: str, right: str) -> int:
    """How many characters two texts share at their beginning, back to the beginning of a word."""
    same = next((i for i, (a, b) in enumerate(zip(left, right)) if a != b), min(len(left), len(right)))
    return max(left.rfind(" ", 0, same), left.rfind("\n", 0, same)) + 1


class Output(str):
    """An output. It equals another output if all numbers are near and the rest is the same."""

    tolerance = USUAL
    __hash__ = str.__hash__

    def __eq__(self, other):
        return difference(self, other, self.tolerance) is None

    def __ne__(self, other):
        return not self == other


class Cell(IPyNbCell):
    """nbval's cell. It compares Outputs and reports the first difference."""

    def sanitize(self, s):
        text = super().sanitize(s)
        if not isinstance(text, str):
            return text
        output = Output(text)
        output.tolerance = tolerance_of(self.cell.metadata)
        return output

    def format_output_compare(self, key, left, right):
        self.comparison_traceback.append(f"{key}: {difference(left, right, left.tolerance)}")


def pytest_itemcollected(item):
    """nbval makes its cells itself, and their class cannot be chosen. So they get our class afterwards."""
    if type(item) is IPyNbCell:
        item.__class__ = Cell
        if not NEEDS.get(item.path.name, lambda: True)():
            item.options["check"] = False
