"""Chapter 09's ladder: one product done in better and better ways, timed and placed under the roof of this machine.

:mod:`.matrices` makes layers of real shapes, :mod:`.timing` lets works take turns, :mod:`.roofline` measures the
machine and what a work moves, :mod:`.rungs` has the ways, :mod:`.decoders` whole decoders, :mod:`.words` sentences
about ratios.
"""
