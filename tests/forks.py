"""Forks of a process that has computed with torch."""

import os


def fork() -> int:
    """:func:`os.fork`, but the child computes on one thread.

    It has none of the threads that its parent computes with, and would wait for them forever.
    """
    child = os.fork()
    if child == 0:
        import torch

        torch.set_num_threads(1)
    return child
