"""Weights in wrong places: a layer that is the negative of FLOAT's, has its rows or columns moved, or is another layer.
Also weights of a wrong size: scales that were mistaken for something else.

These faults show only with FLOAT, the float checkpoint. The rounding need not be followed exactly: rounded weights
point in the direction of the float ones, even with 2 bits. So cosines decide. Methods like AWQ and SmoothQuant move
positive factors between a layer and what is before it. So each column and then each row of both matrices is first
brought to the size 1, which removes such factors. If a weight was rounded to 0, FLOAT's weight is left out: a grid that
is too coarse is no wrong place. Floats that are not packed (embeddings, layers left alone, all of a GGUF file) are
compared in the same way.
"""

from collections.abc import Callable, Iterator

import torch

from qtutor.doctor.finding import Finding
from qtutor.doctor.patient import Layer, Patient

LIKE = 0.5  # cosine of matrices or rows that belong together is higher; with 2 bits GPTQ leaves 0.7
AWAY, TURNED = 0.2, -0.1  # cosine of a row below which rounding seldom leads, and one below which it never leads
TRIED = 128  # rows for which the fitting row is searched
TIMES = 30.0  # factors that methods move between layers do not change the size of a whole matrix by so much
SHARE = 0.8  # of all layers: if at least this share is unlike FLOAT's, it is another model
SAID_BY = ("zero points", "order")  # findings on all layers that explain why weights are unlike FLOAT's


class Places:
    """What each layer is in FLOAT's terms: "" if it is the layer of its name."""

    def __init__(self, patient: Patient):
        self.patient, self.said = patient, {}

    def see(self, layer: Layer) -> None:
        if layer.exact is not None and layer.quantized is not None:
            self._compare(layer.name, layer.quantized.dequantize(), layer.exact)

    def findings(self) -> Iterator[Finding]:
        for name, weights, exact in self.patient.floats():
            self._compare(name, weights, exact)
        wrong = [(name, said) for name, said in self.said.items() if said]
        unlike = [name for name, said in wrong if said == UNLIKE]
        if unlike and len(unlike) >= SHARE * len(self.said):
            text = f"{unlike[0]} (and {len(unlike) - 1} more layers) are not at all like FLOAT's: this is not the "
            yield Finding("another model", unlike[0], f"{text}model that was quantized, or its weights were rotated.")
            return
        for said in dict.fromkeys(said for _, said in wrong):
            names = [name for name, own in wrong if own == said]
            more = f" (and {len(names) - 1} more layers)" if len(names) > 1 else ""
            text = f"{names[0]}{more}: {said}: convert or export the original again."
            yield Finding("places", names[0], text)

    def _compare(self, name: str, weights: torch.Tensor, exact: torch.Tensor) -> None:
        if weights.shape == exact.shape and weights.isfinite().all() and exact.isfinite().all():
            self.said[name] = _described(name, weights, exact, self._others)

    def _others(self, name: str, shape: torch.Size) -> Iterator[tuple[str, torch.Tensor]]:
        """FLOAT's other matrices of this shape."""
        floats = self.patient.float_weights
        for other, parameter in floats.model.named_parameters():
            if parameter.shape == shape and other.removesuffix(".weight") != name:
                yield other.removesuffix(".weight"), floats.tensor(other).float().cpu()


UNLIKE = "its weights are not at all like FLOAT's"


def _described(name: str, weights: torch.Tensor, exact: torch.Tensor, others: Callable) -> str:
    """The rest of a sentence that says what ``weights`` are; "" if they are FLOAT's. Both are float32 ``[out, in]``.

    others(name, shape): names and values of FLOAT's other matrices.
    """
    rows = _cosines(weights, exact)
    if not len(rows):
        return ""  # all of it vanished, which the check of its scales reports
    mean, turned = rows.mean().item(), int((rows < TURNED).sum())
    if mean > LIKE and not (rows < AWAY).any():
        times = (weights.norm() / exact.norm()).item()
        return "" if 1 / TIMES < times < TIMES else f"its weights are {times:.2g} times as large as FLOAT's"
    if mean < -LIKE:
        return "its weights are the negative of FLOAT's"
    if mean <= LIKE:
        same = (other for other, matrix in others(name, weights.shape) if _alike(weights, matrix))
        if (other := next(same, None)) is not None:
            return f"its weights are those of {other} in FLOAT"
        if weights.shape[0] == weights.shape[1] and _alike(weights.T, exact):
            return "it is transposed, so that its rows are FLOAT's columns"
    moved = _moved("rows", weights, exact) or _moved("columns", weights.T, exact.T)
    if moved or (mean > LIKE and not turned):
        return moved
    return UNLIKE if mean <= LIKE else f"at least {turned} of {len(rows)} rows are not at all like FLOAT's"


def _alike(weights: torch.Tensor, exact: torch.Tensor) -> bool:
    return bool(_cosines(weights, exact).mean() > LIKE)


def _cosines(weights: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """For each row that is not all zero, the cosine between its nonzero weights and FLOAT's in the same places."""
    kept = weights != 0
    return (_even(weights) * _even(exact * kept)).sum(1)[kept.any(1)]


def _moved(what: str, weights: torch.Tensor, exact: torch.Tensor) -> str:
    """Whether rows unlike FLOAT's are other rows of FLOAT's, or the negative of their own; "" if they are not."""
    ours, theirs = _even(weights), _even(exact)
    away = (((ours * theirs).sum(1) < AWAY) & (weights != 0).any(1)).nonzero().flatten()
    if not len(away):
        return ""
    tried = away[torch.linspace(0, len(away) - 1, min(TRIED, len(away))).long()]
    cosines = ours[tried] @ theirs.T
    best = cosines.abs().argmax(1)
    if (cosines.abs().amax(1) > LIKE).float().mean() < SHARE:
        return ""
    if (best == tried).all():
        return f"at least {len(away)} of {len(ours)} {what} are the negative of FLOAT's"
    first = (best != tried).nonzero()[0, 0]
    place = f"{what[:-1]} {tried[first]} is FLOAT's {best[first]}"
    return f"at least {len(away)} of {len(ours)} {what} are in other places ({place})"


def _even(matrix: torch.Tensor) -> torch.Tensor:
    """Bring each column, then each row, to the length 1; zero columns and rows stay zero."""
    for dim in (0, 1):
        matrix = matrix / matrix.norm(dim=dim, keepdim=True).clamp(min=1e-30)
    return matrix
