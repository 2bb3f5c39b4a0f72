"""Two tables of chapters 05 and 06: what each recipe costs, and how it compares with rounding to nearest.

They are two, because a cell of a chapter has one tolerance (tests/notebook_numbers.py). On another CPU, KL and
perplexity move by a few per cent. Differences of such numbers, and right answers, move far more.
"""

from collections.abc import Mapping

from qtutor.course.scores import Score, table

Scores = Mapping[str, Score]  # label of a row -> its scores


def on_text(measured: Scores) -> None:
    """The bits of each row, and its perplexity, KL and flips."""
    rows = [
        [label, f"{score.bits:.2f}", f"{c.perplexity:.2f}", f"{c.kl:.4f}", f"{c.flips:.1%}"]
        for label, score in measured.items()
        for c in [score.comparison]
    ]
    table(["weights", "true bits", "perplexity", "KL", "flips"], *rows)


def recovered(measured: Scores, label: str, against: Mapping[str, str]) -> float:
    """The share by which the KL of the row ``label`` is below the KL of the row ``against[label]``."""
    return 1 - measured[label].comparison.kl / measured[against[label]].comparison.kl


def beside_nearest(measured: Scores, against: Mapping[str, str]) -> None:
    """How far perplexity rises, what each row recovers, and its right answers.

    against: label of a row -> the row of rounding to nearest at the same bits.
    """
    rows = [
        [
            label,
            f"{score.comparison.loss_percent:+.1f} %",
            f"{recovered(measured, label, against):.0%}" if label in against else "",
            f"{score.arithmetic:.0%}",
            f"{score.others:.0%}",
        ]
        for label, score in measured.items()
    ]
    table(["weights", "rise of perplexity", "recovered", "arithmetic right", "other answers right"], *rows)
