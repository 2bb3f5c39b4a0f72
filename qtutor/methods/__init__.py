"""Ways to round a matrix: a module a method, and what they share (range search, propagation)."""
