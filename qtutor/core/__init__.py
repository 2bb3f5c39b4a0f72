"""The basic representation that all other parts use: number formats, grids, codes, scales, packed bytes."""
