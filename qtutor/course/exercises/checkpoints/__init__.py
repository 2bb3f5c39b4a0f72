"""Chapter 08: the bytes of checkpoints. :func:`qtutor.course.mine` uses the learner's code to write and read files."""

from qtutor.course.exercises.checkpoints.folder import FOLDER
from qtutor.course.exercises.checkpoints.order import ORDER_OF_NIBBLES
from qtutor.course.exercises.checkpoints.stream import STREAM
from qtutor.course.exercises.checkpoints.words import WORDS
from qtutor.course.exercises.checkpoints.zeros import ZEROS

EXERCISES = (WORDS, ORDER_OF_NIBBLES, ZEROS, STREAM, FOLDER)
