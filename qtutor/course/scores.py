"""The table at the end of every chapter on a method: what it costs the real decoder, compared with rounding to nearest.

The measures are those of chapter 02: perplexity, KL divergence, flips, right answers. They use text and questions that
the decoder never saw.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from IPython.display import Markdown, display

import qtutor
from qtutor.decoder import tasks
from qtutor.decoder.text import held_out_tokens
from qtutor.measure.against import Comparison, compare
from qtutor.measure.generation import task_accuracy
from qtutor.recipe import Recipe
from qtutor.report import Report

OTHERS = tuple(kind for kind in tasks.KINDS if kind not in tasks.ARITHMETIC)


@dataclass(frozen=True)
class Score:
    """The cost of a recipe: the measures on text, the shares of right answers, and the quantizer's report.

    arithmetic, others: shares of right answers, 0 to 1. report: ``None`` for the float model.
    """

    comparison: Comparison
    arithmetic: float
    others: float
    report: Report | None

    @property
    def bits(self) -> float:
        """True bits per quantized weight, including scales and zero points; 16 for the float model."""
        if self.report is None:
            return 16.0
        return 8 * self.report.bytes_after / sum(row.shape[0] * row.shape[1] for row in self.report.rows)


def scores(
    model,
    tokenizer,
    recipes: Mapping[str, Recipe | None],
    calibration: torch.Tensor | None = None,
    tokens: int = 4096,
    questions: int = 50,
) -> dict[str, Score]:
    """Quantize a copy of ``model`` by each recipe, and measure it.

    recipes: label -> recipe, or ``None`` for the float model. calibration: token ids, int64 ``[samples, length]``, for
    the methods that look at inputs. tokens: the number of held-out tokens. questions: the number of questions of each
    kind.
    """
    text = held_out_tokens(tokenizer, limit=tokens)
    measured = {}
    for label, recipe in recipes.items():
        candidate, report = copy.deepcopy(model), None
        if recipe is not None:
            report = qtutor.quantize(candidate, recipe, calibration, progress=False)
        arithmetic, others = (
            sum(task_accuracy(candidate, tokenizer, kinds, questions).values()) / len(kinds)
            for kinds in (tasks.ARITHMETIC, OTHERS)
        )
        measured[label] = Score(compare(candidate, model, text), arithmetic, others, report)
    return measured


def scores_table(measured: Mapping[str, Score]) -> None:
    """Show ``measured`` as a table."""
    header = ["weights", "true bits", "perplexity", "rise", "KL", "flips", "arithmetic right", "other answers right"]
    rows = []
    for label, score in measured.items():
        c = score.comparison
        row = [label, f"{score.bits:.2f}", f"{c.perplexity:.2f}", f"{c.loss_percent:+.1f} %", f"{c.kl:.4f}"]
        rows.append([*row, f"{c.flips:.1%}", f"{score.arithmetic:.0%}", f"{score.others:.0%}"])
    table(header, *rows)


def table(header: list, *rows: list) -> None:
    """Show rows as a Markdown table, which Jupyter and the book render."""
    display(Markdown(as_markdown(header, *rows)))


def as_markdown(header: list, *rows: list) -> str:
    """Rows as a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
