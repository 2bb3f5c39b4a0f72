"""Kernels: products of activations and packed weights. The readable reference comes first, faster ones later.

A kernel is a module, or a small class, with two functions:

    prepare(layer) -> state   all that the kernel needs of a packed layer, in the layout that suits it
    run(x, state) -> y        x ``[..., in]``, any float dtype and batch, to ``[..., out]`` in x's dtype, without bias

A layer calls ``prepare`` before its first product, and again after one of its buffers was changed or moved. The state
is neither copied nor saved with the layer. All work that does not need x belongs in ``prepare``, as far as memory
allows.

:mod:`.reference` defines the right result: another kernel has to come as close to it as its arithmetic allows, on every
grid, group size and shape that the kernel takes. The layer chooses the kernel
(:meth:`~qtutor.runtime.linear.QuantLinear.kernel`) by device, dtype and batch, because a kernel that is fast for one
token may be slow for a thousand. A kernel with its own layout must not double the memory: it replaces the layer's
packed bytes by its own tensor, and converts it back when the layer is saved or unpacked.

The state refers to tensors, never to functions of the package: every run looks these functions up, so that a learner's
functions can replace them.
"""
