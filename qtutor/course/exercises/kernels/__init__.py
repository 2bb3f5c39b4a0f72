"""Chapter 09: why four bits are fast. :func:`qtutor.course.mine` multiplies 4-bit layers with the learner's loop."""

from qtutor.course.exercises.kernels.corner import CORNER
from qtutor.course.exercises.kernels.group import GROUP
from qtutor.course.exercises.kernels.in_place import IN_PLACE
from qtutor.course.exercises.kernels.inner_loop import INNER_LOOP
from qtutor.course.exercises.kernels.int8 import INT8
from qtutor.course.exercises.kernels.token import TOKEN

EXERCISES = (TOKEN, CORNER, GROUP, IN_PLACE, INT8, INNER_LOOP)
