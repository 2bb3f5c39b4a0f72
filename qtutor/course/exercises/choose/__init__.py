"""Chapter 12: what a smaller file is, which models nothing beats, and what a step of training moves."""

from qtutor.course.exercises.choose.front import FRONT
from qtutor.course.exercises.choose.moved import MOVED
from qtutor.course.exercises.choose.times import TIMES

EXERCISES = (TIMES, MOVED, FRONT)
