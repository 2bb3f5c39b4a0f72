"""What is handed over from Python: models (:mod:`.model`) and token ids (:mod:`.ids`).

Each is taken for what can be meant by it, or refused before any work with a word on what to do.
"""
