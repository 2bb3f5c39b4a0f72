"""Checks of what Python callers pass in: models and token ids (:mod:`.ids`).

A model that will be quantized or written is checked by :mod:`.model`, one that will only be run by :mod:`.running`.

A check returns what the caller must have meant. Otherwise it raises, before any work, and says what to do.
"""
