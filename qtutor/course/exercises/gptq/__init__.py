"""Chapter 06: push the error of one column onto the others, the loop over columns, its factor, the order of OBQ."""

from qtutor.course.exercises.gptq.factor import FACTOR
from qtutor.course.exercises.gptq.loop import LOOP
from qtutor.course.exercises.gptq.order import ORDER
from qtutor.course.exercises.gptq.push import PUSH

EXERCISES = (PUSH, LOOP, FACTOR, ORDER)
