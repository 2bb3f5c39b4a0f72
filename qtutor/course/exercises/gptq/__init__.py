"""Exercises of chapter 06: one column pushed onto the others, the loop over all columns, and the factor behind it."""

from qtutor.course.exercises.gptq.factor import FACTOR
from qtutor.course.exercises.gptq.loop import LOOP
from qtutor.course.exercises.gptq.push import PUSH

EXERCISES = (PUSH, LOOP, FACTOR)
