"""Chapter 11, a model of the learner's own: one from outside, measured, and a task without hints.

:mod:`.model` loads it and asks it something, :mod:`.results` holds what was measured beforehand and stored,
:mod:`.capstone` judges a learner's attempts, :mod:`.attempts` keeps them, :mod:`.engine` asks llama.cpp.
"""
