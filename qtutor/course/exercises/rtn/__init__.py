"""Chapter 02: the parts of a quantizer, and one hard extra exercise.

With the first four exercises, :func:`qtutor.course.mine` runs the learner's own quantizer.
"""

from qtutor.course.exercises.rtn.best import BEST
from qtutor.course.exercises.rtn.dequantize import DEQUANTIZE
from qtutor.course.exercises.rtn.encode import ENCODE
from qtutor.course.exercises.rtn.fit import FIT
from qtutor.course.exercises.rtn.pack import PACK

EXERCISES = (FIT, ENCODE, PACK, DEQUANTIZE, BEST)
