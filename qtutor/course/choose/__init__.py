"""Chapter 12: claims about quantization; ``benchmarks/claims.py`` measures them, and this package shows the results.

``candidates``: the models that are measured. ``super_weight``, ``steps``, ``adapters``: experiments. ``results``: the
stored numbers. ``claims``: the claims and their verdicts in words. ``tree``: the best row for an engine and a purpose.
"""
