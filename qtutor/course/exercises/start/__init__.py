"""Exercises of chapter 00: what a quantized layer weighs, how long a token takes, how surprised a model is."""

from qtutor.course.exercises.start.bytes import BYTES
from qtutor.course.exercises.start.perplexity import PERPLEXITY
from qtutor.course.exercises.start.time import TIME

EXERCISES = (BYTES, TIME, PERPLEXITY)
