"""The inputs of a decoder's layers: calibration text, states block by block, statistics and moments."""
