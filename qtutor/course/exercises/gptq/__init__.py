"""Chapter 06: pushing one column's error onto the others, the loop over columns, its factor U, and OBQ's order."""

from qtutor.course.exercises.gptq.factor import FACTOR
from qtutor.course.exercises.gptq.loop import LOOP
from qtutor.course.exercises.gptq.order import ORDER
from qtutor.course.exercises.gptq.push import PUSH

EXERCISES = (PUSH, LOOP, FACTOR, ORDER)
