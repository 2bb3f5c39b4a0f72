"""Chapter 09's ladder: one product computed in better and better ways, timed and placed under this machine's roofline.

:mod:`.matrices` makes layers of real shapes, :mod:`.timing` times computations in turns, :mod:`.roofline` measures the
machine and the bytes that a computation moves, :mod:`.rungs` has the ways to compute the product, :mod:`.decoders`
measures whole decoders, and :mod:`.words` makes sentences about ratios.
"""
