"""Chapter 05: the parts of AWQ. With them, :func:`qtutor.course.mine` runs the learner's own search and fold."""

from qtutor.course.exercises.awq.cost import COST
from qtutor.course.exercises.awq.fold import FOLD
from qtutor.course.exercises.awq.scale import SCALE
from qtutor.course.exercises.awq.search import SEARCH
from qtutor.course.exercises.awq.through import THROUGH

EXERCISES = (FOLD, SCALE, SEARCH, COST, THROUGH)
