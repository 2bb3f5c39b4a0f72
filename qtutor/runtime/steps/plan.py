"""One step of a decoder with Llama's anatomy: functions and their arrays, made once and run for each token."""

import functools
from weakref import WeakKeyDictionary

import numpy as np
import torch

from qtutor.families import LLAMA, Family, decoder_blocks, family_of
from qtutor.runtime.kernels import cpu
from qtutor.runtime.steps import loops
from qtutor.runtime.steps.anatomy import ATTENTION, MLP
from qtutor.runtime.steps.growing import Room
from qtutor.runtime.steps.products import NOTHING, Product, products
from qtutor.threads import in_shares


def floats(tensor: torch.Tensor) -> np.ndarray:
    """``tensor`` as float32, in one dimension; the same memory if it is float32 already."""
    return tensor.detach().to(torch.float32).numpy().reshape(-1)


class Norm:
    """An RMS norm of the rows of an array, into another of the same shape."""

    def __init__(self, norm, x: np.ndarray, out: np.ndarray, half: bool):
        rows = -1, norm.weight.numel()
        eps = float(norm.variance_epsilon)
        self.arguments = x.reshape(rows), floats(norm.weight), eps, half, out.reshape(rows)

    def __call__(self) -> None:
        loops.normed(*self.arguments)


class Block:
    """A decoder block, which changes the residual stream in place. family: its names, those of Llama and a few more."""

    def __init__(self, block, family: Family, stream: np.ndarray, dtype: torch.dtype):
        self.half, self.stream = dtype == torch.bfloat16, stream
        self.multiplier = float(getattr(block, family.multiplier)) if family.multiplier else 1.0
        attention = block.get_submodule(ATTENTION.parent)
        make = functools.partial(self._products, block, dtype)
        x = np.empty_like(stream)
        self.norms = [Norm(block.get_submodule(half.norm), stream, x, self.half) for half in (ATTENTION, MLP)]
        self.qkv = make(ATTENTION.readers, x)
        dim = attention.head_dim
        self.q, self.k, self.v = (product.y.reshape(-1, dim) for product in self.qkv)
        # A family has either no norms inside attention, or one for q and one for k.
        self.head_norms = [
            Norm(block.get_submodule(name), heads, heads, self.half)
            for name, heads in zip(family.extra_norms, (self.q, self.k))
        ]
        self.scaling, self.rope = float(attention.scaling), bool(getattr(attention, "use_rope", True))
        self.seen = np.empty_like(self.q)
        (self.o,) = make((ATTENTION.last,), self.seen.reshape(-1))
        self.gate, self.up = self.gate_up = make(MLP.readers, x)
        self.inner = np.empty_like(self.gate.y)
        (self.down,) = make((MLP.last,), self.inner)

    @staticmethod
    def _products(block, dtype: torch.dtype, names: tuple[str, ...], x: np.ndarray) -> list[Product]:
        return products([block.get_submodule(name) for name in names], x, dtype)

    def run(self, cos: np.ndarray, sin: np.ndarray, room: Room, place: int) -> None:
        """Read the stream of the token at ``place``, write its keys and values to ``room``, and add the outputs."""
        self.norms[0]()
        for product in self.qkv:
            product()
        for norm in self.head_norms:
            norm()
        self._attend(*((cos, sin) if self.rope else (NOTHING, NOTHING)), room, place)
        self._join(self.o)
        self.norms[1]()
        for product in self.gate_up:
            product()
        loops.gated(self.gate.y, self.up.y, self.half, self.inner)
        self._join(self.down)

    def _attend(self, cos: np.ndarray, sin: np.ndarray, room: Room, place: int) -> None:
        given = self.q, self.k, self.v, cos, sin, self.scaling, room.keys, room.values, place, self.half, self.seen
        products_of_a_head = 2 * self.q.size // len(self.k) * (place + 1)
        least = -(-cpu.SHARE // products_of_a_head)
        in_shares(lambda first, last: loops.attended(*given, first, last), len(self.k), least)

    def _join(self, product: Product) -> None:
        product()
        loops.joined(self.stream, product.y, self.multiplier, self.half)

    def current(self) -> bool:
        """Whether no layer has changed."""
        return all(product.current() for product in (*self.qkv, self.o, *self.gate_up, self.down))


class Plan:
    """A step of ``model``, for which :func:`.anatomy.reason_against` returns ``None``."""

    def __init__(self, model):
        self.model, config = model, model.config
        self.dtype = model.get_submodule(LLAMA.norm).weight.dtype
        self.stream = np.empty(config.hidden_size, np.float32)
        blocks = decoder_blocks(model)[: config.num_hidden_layers]
        self.blocks = [Block(block, family_of(model), self.stream, self.dtype) for block in blocks]
        self.rooms: WeakKeyDictionary = WeakKeyDictionary()  # layer of a cache: its room

    def current(self) -> bool:
        """Whether the model has not changed since this plan was made."""
        return all(block.current() for block in self.blocks)

    def logits(self, ids: torch.Tensor, positions: torch.Tensor, cache, count: int) -> torch.Tensor:
        """The logits ``[1, 1, vocabulary]`` after the token ``ids [1, 1]``; ``cache`` grows by this token.

        positions: int64 ``[1, 1]``. count: the number of tokens in the cache before. Raises
        :class:`.products.NotFinite` before the cache has changed.
        """
        body, part = self.model.base_model, self.model.get_submodule
        stream = part(LLAMA.embedding)(ids)
        if hasattr(body, "embedding_multiplier"):
            stream = stream * body.embedding_multiplier
        cos, sin = (floats(part) for part in body.rotary_emb(stream, position_ids=positions))
        self.stream[:] = floats(stream)
        rooms = [self._room(layer, count) for layer in cache.layers]
        for block, room in zip(self.blocks, rooms, strict=True):
            block.run(cos, sin, room, count)
        for layer, room in zip(cache.layers, rooms, strict=True):
            room.grow(layer, count + 1)
        stream = torch.from_numpy(self.stream).to(stream.dtype).reshape(stream.shape)
        logits = part(LLAMA.head)(part(LLAMA.norm)(stream))
        return logits / self.model.config.logits_scaling if hasattr(self.model.config, "logits_scaling") else logits

    def _room(self, layer, count: int) -> Room:
        room = self.rooms.get(layer)
        if room is None or not room.fits(layer, count):
            room = self.rooms[layer] = Room(layer)
        return room
