"""Products of activations with packed weights: the readable reference first, faster ones later.

A kernel is a module, or a small class, with two functions:

    prepare(layer) -> state   all that it needs of a packed layer, in the layout that suits it
    run(x, state) -> y        x ``[..., in]``, any float dtype and batch, to ``[..., out]`` in x's dtype, without bias

A layer prepares once, before its first product, and again where one of its buffers was changed or moved since; state is
neither copied nor saved with it. What can be done before x is known belongs into ``prepare``, as far as memory allows.

:mod:`.reference` is the definition of right: another kernel has to come as close to it as its arithmetic allows, on
every grid, group size and shape that it takes. Which kernel multiplies is for the layer to say
(:meth:`~qtutor.runtime.linear.QuantLinear.kernel`), by device, by dtype and by batch, for what is fast for one token is
not for a thousand. A kernel with a layout of its own must not double the memory: it puts its tensor in the place of the
layer's packed bytes, and turns it back where the layer is saved or unpacked.

State refers to tensors, never to functions of the package: these are looked up in every run, so that those of a learner
can take their place.
"""
