"""What everything starts from: number formats, grids, codes, scales, packed bytes."""
