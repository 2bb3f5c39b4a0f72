"""Chapter 12: how much smaller a file becomes, which models no other beats, and which codes a training step moves."""

from qtutor.course.exercises.choose.front import FRONT
from qtutor.course.exercises.choose.moved import MOVED
from qtutor.course.exercises.choose.times import TIMES

EXERCISES = (TIMES, MOVED, FRONT)
