"""Chapter 04: NF4's levels, the nearest level, inputs in int8 with outlier channels, and the product in two parts.

References are plain loops in Python's own floats. No input is halfway between two levels or codes, because then either
choice would be right.
"""

from qtutor.course.exercises.bnb.encode import ENCODE
from qtutor.course.exercises.bnb.levels import LEVELS
from qtutor.course.exercises.bnb.product import PRODUCT
from qtutor.course.exercises.bnb.tokens import TOKENS

EXERCISES = (LEVELS, ENCODE, TOKENS, PRODUCT)
