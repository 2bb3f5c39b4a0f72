"""One bit of a Q4_K block turned over: which weights move, what the decoder then expects, and what it writes.

The block is one of the embedded decoder, in whose down projection :data:`LAYER` alone is stored as Q4_K; all other
matrices stay as they are. So what is measured is the bit and nothing else. A bit is counted as ``8 * byte + place``,
place 0 being the lowest of its byte. All 1,152 take about two minutes, too long for a chapter, so
``benchmarks/bit_flips.py`` measures them and stores what :func:`document` reads.

Everything is computed in float64: a flip of a low bit changes logits by so little that float32 would round it away.
"""

import copy
import json
from functools import cache
from pathlib import Path

import numpy as np
import torch

import qtutor
from qtutor.decoder.text import held_out_tokens
from qtutor.gguf import TYPES, decode, encode
from qtutor.gguf.anatomy import Part, item_counts, parts_of
from qtutor.measure.generation import generate, prompt_tokens

TYPE = "Q4_K"
LAYER = "model.layers.1.mlp.down_proj"
BLOCK = 3  # its number in the layer: the one that chapter 07 takes apart
BITS = 8 * TYPES[TYPE].nbytes
TOKENS = 512  # of held-out text, one window
PROMPT = 'def mean(values):\n    """Return the mean of a list of numbers."""\n'
NEW_TOKENS = 40
STORED = Path(__file__).parent / "stored" / "bit_flips.json"


def flipped(block: np.ndarray, bit: int) -> np.ndarray:
    """A copy of ``block`` (uint8 ``[nbytes]``) in which one bit is turned over."""
    other = block.copy()
    other[bit // 8] ^= 1 << bit % 8
    return other


def part_of(bit: int) -> Part:
    """The bits of its byte to which ``bit`` belongs: of which item they are, and which weights depend on that."""
    byte, place = divmod(bit, 8)
    return next(part for part in parts_of(TYPE, byte) if part.low <= place < part.low + part.bits)


def weights_moved(block: np.ndarray, bit: int) -> np.ndarray:
    """Numbers of the weights that come back as another number. A scale does not move weights whose code is 0."""
    before, after = decode(np.stack([block, flipped(block, bit)]), TYPE)
    return np.flatnonzero(before != after)


def bits_by_kind() -> dict[str, list[int]]:
    """The bits of each kind of item: ``d``, ``dmin``, ``scale``, ``min``, ``code``."""
    kinds = {kind: [] for kind in item_counts(TYPE)}
    for bit in range(BITS):
        kinds[part_of(bit).item].append(bit)
    return kinds


class Decoder:
    """The embedded decoder with one block that can be damaged, and what it expects and writes while it is whole."""

    def __init__(self):
        model, self.tokenizer = qtutor.load_decoder()
        layer = model.get_submodule(LAYER)
        data = encode(layer.weight.detach().float().numpy(), TYPE)
        layer.weight = torch.nn.Parameter(torch.from_numpy(decode(data, TYPE)), requires_grad=False)
        self.model = copy.deepcopy(model).double()
        self.block = data.reshape(-1, TYPES[TYPE].nbytes)[BLOCK]
        self.weights = self.model.get_submodule(LAYER).weight.data.view(-1, TYPES[TYPE].values)[BLOCK]
        self.held_out = held_out_tokens(self.tokenizer, limit=TOKENS)[None]
        self.whole = self._log_p(self.held_out)
        self.text = self._written()
        self.start = prompt_tokens(model, self.tokenizer, PROMPT)
        self.ids = torch.tensor([self.start + self.tokenizer(self.text)["input_ids"]])

    def kl(self, bit: int) -> float:
        """KL(whole || damaged) in nats a token, the mean over the held-out window."""
        with _Damaged(self, bit):
            log_p = self._log_p(self.held_out)
        return float((self.whole.exp() * (self.whole - log_p)).sum(-1).mean())

    def continuation(self, bit: int) -> str:
        """What the damaged decoder writes after :data:`PROMPT`, greedily; the prompt is not part of it."""
        with _Damaged(self, bit):
            # One pass over the text of the whole decoder: where each token is still the likeliest, nothing changes.
            likeliest = self._log_p(self.ids).argmax(-1)[len(self.start) - 1 : -1]
            return self.text if torch.equal(likeliest, self.ids[0, len(self.start) :]) else self._written()

    def _written(self) -> str:
        return generate(self.model, self.tokenizer, PROMPT, NEW_TOKENS)[len(PROMPT) :]

    @torch.inference_mode()
    def _log_p(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(ids, use_cache=False).logits[0].double().log_softmax(-1)


class _Damaged:
    """While it is open, one bit of the decoder's block is turned over."""

    def __init__(self, decoder: Decoder, bit: int):
        self.weights = decoder.weights
        self.before = self.weights.clone()
        self.after = torch.from_numpy(decode(flipped(decoder.block, bit)[None], TYPE)[0]).double()

    def __enter__(self):
        self.weights.copy_(self.after)

    def __exit__(self, *exception):
        self.weights.copy_(self.before)


@cache
def document() -> dict:
    """What ``benchmarks/bit_flips.py`` stored.

    ``block``: the bytes in hexadecimal. ``kl``: a number for each bit. ``texts``: what was written, each text once,
    the undamaged decoder's first. ``text_of``: for each bit the place of its text in that list. And the settings.
    """
    return json.loads(STORED.read_text(encoding="utf-8"))


def settings() -> dict:
    """What the stored numbers depend on besides the decoder, so that a test sees when the two part."""
    return {"layer": LAYER, "number": BLOCK, "tokens": TOKENS, "prompt": PROMPT, "new_tokens": NEW_TOKENS}
