"""Chapter 01: a float from its bits, rounding to bfloat16, the ratio of signal to rounding error."""

from qtutor.course.exercises.numbers.bfloat import TO_BFLOAT16
from qtutor.course.exercises.numbers.decibels import SQNR
from qtutor.course.exercises.numbers.decode import DECODE_FLOAT

EXERCISES = (DECODE_FLOAT, TO_BFLOAT16, SQNR)
