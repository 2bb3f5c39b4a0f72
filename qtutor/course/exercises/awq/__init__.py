"""Chapter 05: the parts of AWQ. With them, :func:`qtutor.course.mine` searches and folds with the learner's own."""

from qtutor.course.exercises.awq.cost import COST
from qtutor.course.exercises.awq.fold import FOLD
from qtutor.course.exercises.awq.scale import SCALE
from qtutor.course.exercises.awq.search import SEARCH

EXERCISES = (FOLD, SCALE, SEARCH, COST)
