"""Chapter 00: the bytes of a quantized layer, the time of a token, and the surprise of a model (its perplexity)."""

from qtutor.course.exercises.start.bytes import BYTES
from qtutor.course.exercises.start.perplexity import PERPLEXITY
from qtutor.course.exercises.start.time import TIME

EXERCISES = (BYTES, TIME, PERPLEXITY)
