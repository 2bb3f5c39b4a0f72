"""The diagram of a block: every matrix is in it, with its shape."""

from types import SimpleNamespace

import torch

from qtutor.plots.block import decoder_block, shapes_of


def test_seven_matrices_with_their_shapes():
    sizes = {"q": (6, 4), "k": (2, 4), "v": (3, 4), "o": (4, 6), "gate": (9, 4), "up": (8, 4), "down": (4, 9)}
    layers = {f"{name}_proj": SimpleNamespace(weight=torch.zeros(size)) for name, size in sizes.items()}
    shapes = shapes_of(SimpleNamespace(self_attn=SimpleNamespace(**layers), mlp=SimpleNamespace(**layers)))
    assert shapes == sizes
    texts = [text.get_text() for text in decoder_block(shapes).axes[0].texts]
    assert all(f"{name}\n{out} × {inputs}" in texts for name, (out, inputs) in sizes.items())
    assert "the residual stream: 4 numbers a token" in texts and texts.count("norm") == 2
