"""Chapter 11, the learner's own model: a model from outside the course is measured, and a task without hints.

:mod:`.model` loads the model and asks it questions, :mod:`.results` holds stored measurements, :mod:`.capstone` judges
a learner's attempts, :mod:`.attempts` keeps them, :mod:`.engine` asks llama.cpp.
"""
