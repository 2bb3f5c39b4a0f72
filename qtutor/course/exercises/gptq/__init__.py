"""Chapter 06: push the error of one column onto the others, the loop over all columns, and the factor that it needs."""

from qtutor.course.exercises.gptq.factor import FACTOR
from qtutor.course.exercises.gptq.loop import LOOP
from qtutor.course.exercises.gptq.push import PUSH

EXERCISES = (PUSH, LOOP, FACTOR)
