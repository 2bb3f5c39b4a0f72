"""Checks of what Python callers pass in: models (:mod:`.model`) and token ids (:mod:`.ids`).

A check returns what the caller must have meant. Otherwise it raises, before any work, and says what to do.
"""
