"""Training beside a quantized model: a small version of QLoRA, and two other ways to compare it with.

Dettmers et al. 2023 (arXiv 2305.14314): the base is NF4 and frozen. Each layer gets two thin matrices beside it, and
only these are trained: ``y = base(x) + (x A^T) B^T * scale``. B starts at 0, so at the start the model equals the base
(Hu et al. 2021, LoRA, arXiv 2106.09685). Gradients go through the frozen layer to the layers before it, but never into
its codes.

Left out: paged optimizers, dropout, and adapters in 16 bits.
"""

import random
from dataclasses import replace

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from qtutor.core.grid import IntGrid
from qtutor.course.choose.steps import recoded
from qtutor.families import decoder_blocks
from qtutor.measure.generation import right_answers
from qtutor.methods import rtn
from qtutor.runtime.linear import QuantLinear

RANK, ALPHA = 8, 16
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Adapter(nn.Module):
    """A frozen layer and two thin matrices beside it, A ``[rank, in]`` and B ``[out, rank]``."""

    def __init__(self, base: nn.Module, rank: int = RANK):
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + (x @ self.a.T) @ self.b.T * (ALPHA / len(self.a))


def with_adapters(model, rank: int = RANK, seed: int = 0) -> list[nn.Parameter]:
    """Freeze ``model``, put an adapter beside every layer of its blocks, and return the parameters to train."""
    model.requires_grad_(False)
    torch.manual_seed(seed)
    trained = []
    for block in decoder_blocks(model):
        layers = {name: m for name, m in block.named_modules() if isinstance(m, QuantLinear | nn.Linear)}
        for name, layer in layers.items():
            adapter = Adapter(layer, rank)
            block.set_submodule(name, adapter)
            trained += [adapter.a, adapter.b]
    return trained


def question(rng: random.Random) -> tuple[str, str]:
    """A kind of question that the decoder never saw: ``'cab'[-1]``, the last letter, and its answer."""
    word = "".join(rng.choice(LETTERS) for _ in range(rng.randint(3, 5)))
    return f"'{word}'[-1]", repr(word[-1])


def examples(tokenizer, count: int, seed: int, each: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and a mask, ``[count, length]``: sessions of ``each`` questions, cut to one length; the mask is true
    where a token belongs to an answer; training counts only these tokens.
    """
    rng = random.Random(seed)
    rows, masks = [], []
    for _ in range(count):
        row, mask = [tokenizer.eos_token_id], [False]
        for _ in range(each):
            asked, answer = question(rng)
            for text, wanted in ((f">>> {asked}\n", False), (f"{answer}\n", True)):
                ids = tokenizer(text, verbose=False)["input_ids"]
                row, mask = row + ids, mask + [wanted] * len(ids)
        rows.append(row)
        masks.append(mask)
    length = min(map(len, rows))
    return torch.tensor([row[:length] for row in rows]), torch.tensor([mask[:length] for mask in masks])


def right(model, tokenizer, count: int = 100, seed: int = 10**6) -> float:
    """The share of ``count`` new questions that greedy decoding answers correctly."""
    rng = random.Random(seed)
    return sum(right_answers(model, tokenizer, [question(rng) for _ in range(count)])) / count


def train(model, tokenizer, trained, steps: int, rate: float, batch: int = 8, after=None) -> list[float]:
    """Adam on fresh examples; returns the loss of each step. after: called after every step, to round again."""
    optimizer = torch.optim.Adam(trained, lr=rate)
    losses = []
    model.train()
    for step in range(steps):
        ids, wanted = examples(tokenizer, batch, seed=step)
        logits = model(ids[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits[wanted[:, 1:]], ids[:, 1:][wanted[:, 1:]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if after is not None:
            after()
        losses.append(loss.item())
    model.eval()
    return losses


def rounded_again(layers: list[nn.Linear], bits: int = 4, group_size: int = 64):
    """A function that puts the weights of ``layers`` back on the grid that they have now: training *in* the codes."""
    fitted = [rtn.quantize(layer.weight.detach(), IntGrid(bits), group_size) for layer in layers]

    @torch.no_grad()
    def back() -> None:
        for place, (layer, now) in enumerate(zip(layers, fitted, strict=True)):
            fitted[place] = replace(now, codes=recoded(now, layer.weight - now.dequantize()))
            layer.weight.copy_(fitted[place].dequantize())

    back()
    return back
