"""Kernels: products of activations and packed weights. The readable reference comes first, faster ones later.

A kernel is a module, or a small class, with two functions:

    prepare(layer) -> state   all that the kernel needs from a packed layer, in the layout that suits the kernel
    run(x, state) -> y        x ``[..., in]``, any float dtype and batch, to ``[..., out]`` in x's dtype, without bias

A layer calls ``prepare`` before its first product, and again after one of its buffers was changed or moved. The state
is neither copied nor saved with the layer. All work that does not need x belongs in ``prepare``, as far as memory
allows.

:mod:`.reference` defines the right result: another kernel has to be as close to it as its arithmetic allows, for every
grid, group size and shape that the kernel supports. :mod:`.cpu` is fast, and needs numba; :mod:`.cuda` is for GPUs, and
needs Triton. :mod:`.rounded` rounds inputs to int8, and :mod:`.torch_int4` is torch's operator: both are less exact,
and used only on request (:func:`qtutor.runtime.use`). :mod:`.choosing` has the table by which a layer chooses, and
:func:`qtutor.runtime.explain` prints it.

A kernel with its own layout must not double the memory. So it has a third function:

    packed(state) -> tensor   the layer's packed bytes, out of the state

Then the state replaces the layer's packed bytes, until other code reads them (:mod:`qtutor.runtime.lending`). All
kernels of the table also have ``manner(batch, dtype)``, which says in words how they multiply.

A learner's functions can replace those of the package (:func:`qtutor.course.mine`). The state refers to tensors, never
to such functions: every run of the reference looks them up. While a learner's functions are active, no other kernel is
chosen.
"""
