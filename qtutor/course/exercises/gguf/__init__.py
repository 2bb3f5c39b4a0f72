"""Chapter 07: the parts of a GGUF file. :func:`qtutor.course.mine` encodes Q4_0 and decodes with the learner's code."""

from qtutor.course.exercises.gguf.fit import FIT
from qtutor.course.exercises.gguf.info import INFO
from qtutor.course.exercises.gguf.q4_0 import Q4_0
from qtutor.course.exercises.gguf.q6_k import Q6_K
from qtutor.course.exercises.gguf.scales import SCALES

EXERCISES = (INFO, Q4_0, FIT, SCALES, Q6_K)
