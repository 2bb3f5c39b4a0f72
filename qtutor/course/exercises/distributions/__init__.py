"""Chapter 03: the kurtosis of a row, the channels with the largest inputs, and columns kept in 16 bits."""

from qtutor.course.exercises.distributions.keep import KEEP
from qtutor.course.exercises.distributions.kurtosis import KURTOSIS
from qtutor.course.exercises.distributions.salient import SALIENT

EXERCISES = (KURTOSIS, SALIENT, KEEP)
