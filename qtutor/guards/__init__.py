"""Checks of what Python callers pass in: models (:mod:`.model`) and token ids (:mod:`.ids`).

A check returns what the caller must have meant, or raises an error, before any work, that says what to do.
"""
