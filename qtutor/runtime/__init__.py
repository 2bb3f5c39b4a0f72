"""Layers that store packed bytes and compute with them."""
