"""The representation on which all other parts build: number formats, grids, codes, scales, packed bytes."""
