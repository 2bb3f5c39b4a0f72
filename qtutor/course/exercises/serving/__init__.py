"""Chapter 10: what it costs to serve many users at once, and who is served when."""

from qtutor.course.exercises.serving.keys import KEYS
from qtutor.course.exercises.serving.pick import PICK
from qtutor.course.exercises.serving.room import ROOM
from qtutor.course.exercises.serving.slots import SLOTS
from qtutor.course.exercises.serving.turn import TURN

EXERCISES = (ROOM, PICK, SLOTS, KEYS, TURN)
