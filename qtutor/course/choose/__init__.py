"""Chapter 12: claims about quantization, measured; ``benchmarks/claims.py`` measures, and this room says what it found.

``candidates``: what is measured. ``super_weight``, ``steps``, ``adapters``: experiments. ``results``: what is stored.
``claims``: the claims and their verdicts in words. ``tree``: which row an engine and a purpose lead to.
"""
