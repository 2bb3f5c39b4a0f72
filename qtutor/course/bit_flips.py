"""One flipped bit of a Q4_K block: which weights it changes, what the decoder then predicts, and what it writes.

The block belongs to the embedded decoder. Only its down projection :data:`LAYER` is stored as Q4_K; all other matrices
stay as they are. So only the effect of the bit is measured. A bit's number is ``8 * byte + place``; place 0 is the
lowest bit of its byte. All 1,152 bits take about two minutes, too long for a chapter. So ``benchmarks/bit_flips.py``
measures them and stores the results that :func:`document` reads.

Everything is computed in float64: the flip of a low bit changes the logits so little that float32 would round the
change away.
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
BLOCK = 3  # its number in the layer; chapter 07 takes this block apart
BITS = 8 * TYPES[TYPE].nbytes
TOKENS = 512  # of held-out text, one window
PROMPT = 'def mean(values):\n    """Return the mean of a list of numbers."""\n'
NEW_TOKENS = 40
STORED = Path(__file__).parent / "stored" / "bit_flips.json"


def flipped(block: np.ndarray, bit: int) -> np.ndarray:
    """A copy of ``block`` (uint8 ``[nbytes]``) with one bit flipped."""
    other = block.copy()
    other[bit // 8] ^= 1 << bit % 8
    return other


def part_of(bit: int) -> Part:
    """The part of a byte that contains ``bit``: its bits, the item they store, and the weights that depend on it."""
    byte, place = divmod(bit, 8)
    return next(part for part in parts_of(TYPE, byte) if part.low <= place < part.low + part.bits)


def weights_moved(block: np.ndarray, bit: int) -> np.ndarray:
    """The indices of the weights that change if ``bit`` is flipped. A scale does not change weights whose code is 0."""
    before, after = decode(np.stack([block, flipped(block, bit)]), TYPE)
    return np.flatnonzero(before != after)


def bits_by_kind() -> dict[str, list[int]]:
    """The bits of each kind of item: ``d``, ``dmin``, ``scale``, ``min``, ``code``."""
    kinds = {kind: [] for kind in item_counts(TYPE)}
    for bit in range(BITS):
        kinds[part_of(bit).item].append(bit)
    return kinds


class Decoder:
    """The embedded decoder with one block that can be damaged, and the predictions and text of the whole decoder."""

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
        """What the damaged decoder writes after :data:`PROMPT`, greedily; the prompt is not part of the text."""
        with _Damaged(self, bit):
            # One pass over the text of the whole decoder: if each token is still the likeliest, the text is the same.
            likeliest = self._log_p(self.ids).argmax(-1)[len(self.start) - 1 : -1]
            return self.text if torch.equal(likeliest, self.ids[0, len(self.start) :]) else self._written()

    def _written(self) -> str:
        return generate(self.model, self.tokenizer, PROMPT, NEW_TOKENS)[len(PROMPT) :]

    @torch.inference_mode()
    def _log_p(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(ids, use_cache=False).logits[0].double().log_softmax(-1)


class _Damaged:
    """Within a ``with`` block, one bit of the decoder's block is flipped."""

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
    """The results that ``benchmarks/bit_flips.py`` stored.

    ``block``: the bytes in hexadecimal. ``kl``: a number for each bit. ``texts``: the texts that were written, each
    text once, the undamaged decoder's first. ``text_of``: for each bit, the index of its text in ``texts``. The
    settings are stored, too.
    """
    return json.loads(STORED.read_text(encoding="utf-8"))


def settings() -> dict:
    """The settings behind the stored numbers, without the decoder; a test compares them with the stored settings."""
    return {"layer": LAYER, "number": BLOCK, "tokens": TOKENS, "prompt": PROMPT, "new_tokens": NEW_TOKENS}
