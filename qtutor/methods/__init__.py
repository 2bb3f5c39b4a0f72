"""Ways to round a matrix: one module for each method, and modules for shared parts (range search, propagation)."""
