"""Zero points that are off by one: version 1 of GPTQ read as version 2, or the reverse.

Every weight is then one step too large, or too small, and the model talks garbage. A symmetric file shows this exactly:
its zero points are all one beside the middle. With FLOAT, the float checkpoint, the rounding errors show it: with the
right zero point they are about half of those with the wrong one. Without FLOAT, statistics show it: the weights of a
decoder are around 0, so codes minus their zero points have a mean of 0 in nearly all groups. With a wrong zero point,
the mean is exactly 1 or -1, in every layer. With 8 bits, many layers cannot show it, since a step is a small part of
the weights' width; then the other layers have to agree. If a few layers are off while the others are not, only FLOAT
shows it.
"""

from collections.abc import Iterator

import torch

from qtutor.core.grid import IntGrid
from qtutor.core.quantized import QuantizedTensor
from qtutor.doctor.finding import Finding
from qtutor.doctor.fitting import distance
from qtutor.doctor.patient import Layer, Patient
from qtutor.formats.gptq import FIRST, SECOND

STORED = {"gptq": "qzeros", "awq": "qzeros", "mlx": "biases"}  # the tensor in which zero points are stored
NEAR, SURE = 0.3, 0.12  # how far a mean may be from a whole step; its largest standard error
SHARE, ENOUGH = 0.8, 0.3  # of the layers with a vote have to agree; this share of all layers has to have one
BETTER = 0.85  # of the error, with another zero point


class ZeroPoints:
    """Votes of all layers: by how many steps their zero points are off, ``None`` if that cannot be said."""

    def __init__(self, patient: Patient):
        self.patient, self.votes, self.compared = patient, {}, set()

    def see(self, layer: Layer) -> None:
        quantized = layer.quantized
        if quantized is None or not isinstance(quantized.grid, IntGrid) or not quantized.scales.isfinite().all():
            return
        if layer.exact is not None:
            self.compared.add(layer.name)
            self.votes[layer.name] = _compared(quantized, layer.exact)
        else:
            vote = _by_middle(layer)
            self.votes[layer.name] = _by_statistics(quantized) if vote is None else vote

    def findings(self) -> Iterator[Finding]:
        known = [vote for vote in self.votes.values() if vote is not None]
        for off in (1, -1):
            names = [name for name, vote in self.votes.items() if vote == off]
            if known and len(names) >= SHARE * len(known) and len(known) >= ENOUGH * len(self.votes):
                yield Finding("zero points", names[0], f"{self._said(names, off)}: {self._advice(off)}")
            elif sure := [name for name in names if name in self.compared]:
                again = "those of the other layers are right. Convert the original again."
                yield Finding("zero points of some layers", sure[0], f"{self._said(sure, off)}: {again}")

    def _said(self, names: list[str], off: int) -> str:
        also = f" (and in {len(names) - 1} more layers)" if len(names) > 1 else ""
        return (
            f"{names[0]}.{STORED.get(self.patient.form, 'weight_zero_point')}{also}: zero points are one too "
            f"{'small' if off > 0 else 'large'}, so every weight is a step off"
        )

    def _advice(self, off: int) -> str:
        version = self.patient.settings.get("checkpoint_format") or self.patient.settings.get("format") or FIRST
        meant = FIRST if off > 0 else SECOND
        if self.patient.form == "gptq" and version != meant:
            return (
                f"the file stores them as {meant!r} does and says that it is {version!r}. Set checkpoint_format to "
                f"{meant!r} in config.json and quantize_config.json."
            )
        return "the tool that wrote the file counts them differently from its format. Convert the original again."


def _by_middle(layer: Layer) -> int | None:
    """How far the zero points of a symmetric file, read as stored, are from the middle; ``None`` if they differ."""
    if layer.layout is None or not layer.layout.grid.symmetric or layer.quantized.zeros is None:
        return None
    off = layer.layout.grid.middle - layer.quantized.zeros.int()
    return int(off.flatten()[0]) if bool((off == off.flatten()[0]).all()) else None


def _by_statistics(quantized: QuantizedTensor) -> int | None:
    """1 or -1 if codes minus zero points have that mean, 0 if they have another, ``None`` if the mean is not sure."""
    shape, zeros = quantized.scales.shape, quantized.zeros
    middle = quantized.grid.middle if zeros is None else zeros.float()
    means = quantized.codes.reshape(*shape, -1).float().mean(-1) - middle  # [out, groups]
    centre = means.median()
    width = 1.25 * 1.48 * (means - centre).abs().median() / means.numel() ** 0.5  # of the median, if they were normal
    if width > SURE:
        return None
    return next((off for off in (1, -1) if abs(centre - off) < NEAR), 0)


def _compared(quantized: QuantizedTensor, exact: torch.Tensor) -> int | None:
    """By how many steps the zero points are off, judged by which ones give weights nearest to FLOAT's."""
    weights = quantized.dequantize()
    step = quantized.scales.float().repeat_interleave(weights.shape[1] // quantized.scales.shape[1], 1)
    errors = {off: distance(weights - off * step, exact) for off in (0, 1, -1)}
    best = min(errors, key=errors.get)
    return best if errors[best] < BETTER * errors[0] else 0
