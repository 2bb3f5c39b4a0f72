"""Modules that hold packed bytes and compute from them."""
