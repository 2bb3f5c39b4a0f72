"""The tables of chapter 11: data in, a table on the page."""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import nn

import qtutor
from qtutor.budget import Table
from qtutor.core.grid import IntGrid
from qtutor.course.scores import table
from qtutor.course.your_model.results import CHAT, Row, matched_rows
from qtutor.families import decoder_blocks, family_of, linear_layers
from qtutor.measure.losses import model_weights
from qtutor.methods import rtn
from qtutor.plots.comparison import Point, best
from qtutor.plots.your_model import short

MOST = 5  # rows of a shortened list
FENCE = re.compile(r"```\w*\n?")


def facts(model: nn.Module) -> None:
    """The facts to know about a decoder before anything is done with it."""
    weights = model_weights(model)
    embedding = model.get_submodule(family_of(model).embedding).weight.numel()
    rows = [
        ("family", model.config.model_type),
        ("decoder blocks", len(decoder_blocks(model))),
        ("linear layers in them", len(linear_layers(model))),
        ("hidden size", model.config.hidden_size),
        ("tokens in the vocabulary", f"{model.config.vocab_size:,}"),
        ("weights", f"{weights:,}"),
        ("of these in the embedding", f"{embedding:,} ({embedding / weights:.0%})"),
        ("bytes at 16 bits a weight", f"{2 * weights:,}"),
    ]
    table(["what", "how much"], *rows)


def grids_on(weight: torch.Tensor) -> None:
    """The errors of three 4-bit grids on ``weight [out, in]``, and how many different numbers its groups of 32 hold."""
    rows = weight.detach()[:64].float().contiguous()
    distinct = max(len(group.unique()) for group in rows[:, :256].reshape(-1, 32))
    print(f"In the first groups of 32 weights there are at most {distinct} different numbers.")
    found = {}
    for name in ("Q4_1", "Q4_0"):
        back = qtutor.gguf.decode(qtutor.gguf.encode(rows.numpy(), name), name)
        found[f"{name} of a .gguf file"] = torch.from_numpy(back)
    found["the course's, with whole zero points"] = rtn.quantize(rows, IntGrid(4), 32).dequantize()
    errors = {name: ((back - rows).norm() / rows.norm()).item() for name, back in found.items()}
    table(["grid of 4 bits, groups of 32", "error of the weights"], *[(n, f"{e:.2%}") for n, e in errors.items()])


def dearest(costs: Table, bits: int, model: nn.Module) -> None:
    """The layers with the highest cost at ``bits`` bits, with their shares of the total cost and of all weights."""
    total = sum(row[bits] for row in costs.values())
    weights = {name: layer.weight.numel() for name, layer in linear_layers(model).items()}
    ordered = sorted(costs, key=lambda name: -costs[name][bits])
    rows = [
        (short(name), f"{costs[name][bits]:.5f}", f"{costs[name][bits] / total:.1%}",
         f"{weights[name] / sum(weights.values()):.1%}")
        for name in ordered[:MOST]
    ]  # fmt: skip
    table(["layer", f"cost at {bits} bits", "share of the cost", "share of the weights"], *rows)
    tenth = max(len(ordered) // 10, 1)
    share = sum(costs[name][bits] for name in ordered[:tenth]) / total
    print(f"The most expensive tenth of the layers ({tenth}) has {share:.0%} of the cost.")


def mixes(costs: Table, chosen: Mapping[str, int]) -> None:
    """The cost of all layers together: all at 3 bits, all at 4 bits, and each with bits of its own."""
    alike = {bits: sum(row[bits] for row in costs.values()) for bits in (3, 4)}
    own = sum(costs[name][bits] for name, bits in chosen.items())
    middle = (alike[3] + alike[4]) / 2
    rows = [(f"{bits} for every layer", f"{cost:.4f}") for bits, cost in alike.items()]
    rows += [
        ("3 for half of the layers, 4 for the others", f"{middle:.4f}"),
        ("3.5 on average, chosen for each layer", f"{own:.4f}"),
    ]
    table(["bits", "predicted cost, nats a token"], *rows)
    print(f"That is {1 - own / middle:.0%} below the mean of 3 and 4 bits.")


def calibrations(rows: Mapping[str, Row]) -> None:
    """Models of the same size, with KL on plain text and on conversations; stored, for SmolLM2."""
    read = {
        "RTN 4": "no text: rounded to nearest",
        "GPTQ 4": "English and Python, unchanged",
        CHAT: "the same text, half of it as conversations",
    }
    known = {name: rows[name] for name in read if name in rows}
    lines = [
        (name.partition(",")[0], read[name], f"{row.kl:.3f} ± {row.kl_error:.3f}",
         f"{row.chat_kl:.3f} ± {row.chat_kl_error:.3f}")
        for name, row in known.items()
    ]  # fmt: skip
    table(["model", "calibrated with", "KL on English and Python", "KL on conversations"], *lines)
    nearest = known["RTN 4"]
    for name in [name for name in known if name != "RTN 4"]:
        row = known[name]
        print(
            f"GPTQ calibrated with {read[name]}: {row.kl / nearest.kl:.0%} of the KL of rounding to nearest on English "
            f"and Python, {row.chat_kl / nearest.chat_kl:.0%} of it on conversations."
        )


def matched(bits: int) -> None:
    """KL on prose and on Python after GPTQ with several calibration texts, and their ratio to the KL with matched text;
    stored, for SmolLM2.
    """
    at = {(row["calibrated"], row["measured"]): row for row in matched_rows() if row["bits"] == bits}
    kinds = list(dict.fromkeys(kind for _, kind in at))
    called = {"none": "no text: rounded to nearest", "built-in": "the built-in text, half prose and half Python"}
    lines = []
    for name in dict.fromkeys(name for name, _ in at):
        cells = [called.get(name, name)]
        for kind in kinds:
            one = at[name, kind]
            cells += [f"{one['kl']:.3f} ± {one['kl_error']:.3f}", f"{one['kl'] / at[kind, kind]['kl']:.2f}"]
        lines.append(cells)
    heads = (head for kind in kinds for head in (f"KL on {kind}", "over matched"))
    table([f"{bits} bits, calibrated with", *heads], *lines)


def candidates(rows: Iterable[Row]) -> None:
    """The stored models, smallest first, and those that no other model beats in both bytes and KL."""
    ordered = sorted(rows, key=lambda row: (row.nbytes, row.kl))
    lines = [
        (row.name, f"{row.nbytes:,}", f"{row.kl:.4f} ± {row.kl_error:.4f}", f"{row.loss_percent:+.1f} %",
         f"{row.flips:.1%}")
        for row in ordered
    ]  # fmt: skip
    table(["model", "bytes of its weights", "KL", "perplexity rises by", "flips"], *lines)
    front = best([Point(row.name, row.nbytes, row.kl) for row in ordered])
    print(
        f"No model is both smaller and closer to the float model than one of these: {', '.join(p.name for p in front)}."
    )


def answers(questions: Mapping[str, str], by: Mapping[str, Mapping[str, str]]) -> None:
    """The answers of several models. questions: name -> question. by: model -> name of the question -> answer."""
    lines = [(who, *[_cell(said[name]) for name in questions]) for who, said in by.items()]
    table(["", *[_cell(question) for question in questions.values()]], *lines)


def _cell(text: str) -> str:
    """Text for a cell of a Markdown table, unchanged except that fences around code are removed."""
    kept = FENCE.sub("", text).strip().replace("&", "&amp;").replace("<", "&lt;")
    for sign in "|*`_$":
        kept = kept.replace(sign, f"\\{sign}")
    return kept.replace("\n", "<br>")
