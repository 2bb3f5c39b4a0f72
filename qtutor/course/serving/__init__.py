"""Computations of chapter 10 outside of the package: sizes of published models, and how requests are served over time.

:mod:`.sizes` counts bytes and users, :mod:`.history` runs the package's scheduler without a model and notes each step,
:mod:`.load` times the engine, :mod:`.costs` says what rounded caches cost.
"""
