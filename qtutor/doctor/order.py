"""Codes in the wrong order: AWQ's nibbles read in the plain order or the reverse, nibbles or words turned round.

A format that packs outputs (AWQ, ModelOpt) mixes up rows if it is read in a wrong order, and then scales belong to
other rows. In a row, the range of a group is wide if its scale is large, and the codes are spread over the whole range,
wide or not. So the spread of the codes times the scale is nearly the same in all groups of a row. If the codes belong
to another row, it is far from the same. Formats that pack inputs (GPTQ, compressed-tensors, bitsandbytes) mix up
columns inside of a group, which shows only with FLOAT, the float checkpoint.
"""

from collections.abc import Iterator

import torch

from qtutor.core.quantized import QuantizedTensor, dequantize
from qtutor.doctor.finding import Finding
from qtutor.doctor.fitting import distance
from qtutor.doctor.patient import Layer, Patient

ORDERS = {
    "its nibbles are packed in the plain order and read in AWQ's": (0, 2, 4, 6, 1, 3, 5, 7),
    "its nibbles are packed in AWQ's order and read in the plain one": (0, 4, 1, 5, 2, 6, 3, 7),
    "the two nibbles of each byte are swapped": (1, 0, 3, 2, 5, 4, 7, 6),
    "the nibbles of each word are in reverse order": (7, 6, 5, 4, 3, 2, 1, 0),
}
PACKED_ROWS = ("awq", "modelopt")
SUSPECT, BETTER = 0.4, 0.6  # distance from FLOAT that is suspicious; the right order leaves less than this share of it
STEADIER = 0.8  # the right order leaves less than this share of the variance in rows
SHARE = 0.8


class Orders:
    """Votes of all layers of 4 bits: the order that fits better than the file's, "" if the file's order is right."""

    def __init__(self, patient: Patient):
        self.patient, self.votes = patient, {}

    def see(self, layer: Layer) -> None:
        quantized = layer.quantized
        if quantized is None or self.patient.foreign is None or not quantized.scales.isfinite().all():
            return
        rows = self.patient.form in PACKED_ROWS
        if layer.exact is not None:
            before = distance(quantized.dequantize(), layer.exact)
            self.votes[layer.name] = _compared(quantized, layer.exact, rows, before)
        elif rows and quantized.scales.shape[1] > 1:
            self.votes[layer.name] = _by_spread(quantized)

    def findings(self) -> Iterator[Finding]:
        votes = list(self.votes.values())
        for text in ORDERS:
            if votes and votes.count(text) >= SHARE * len(votes):
                first = next(name for name, vote in self.votes.items() if vote == text)
                yield Finding("order", first, self._sentence(first, text, votes.count(text) - 1))
                return

    def _sentence(self, name: str, text: str, more: int) -> str:
        found = self.patient.foreign
        kinds = found.form.tensors_of_layer(found.layouts[name], *found.model.get_submodule(name).weight.shape)
        return (
            f"{name}.{next(iter(kinds))} (and {more} more layers): {text}, so weights are in each other's "
            "places: convert the original again."
        )


def _orders(count: int) -> dict[str, torch.Tensor]:
    """By order, the place from which each of ``count`` rows or columns is to be taken."""
    eights = torch.arange(count).reshape(-1, 8)
    return {text: eights[:, list(order)].flatten() for text, order in ORDERS.items()}


def _compared(quantized: QuantizedTensor, exact: torch.Tensor, rows: bool, before: float) -> str:
    """The order that brings the weights near FLOAT's, if the file's order leaves them far away; else ""."""
    if before < SUSPECT or quantized.grid.bits != 4 or quantized.shape[1 - rows] % 8:
        return ""
    errors = {}
    for text, order in _orders(quantized.shape[1 - rows]).items():
        codes = quantized.codes[order] if rows else quantized.codes[:, order]
        turned = [quantized.zeros] if quantized.zeros is None or not rows else [quantized.zeros, quantized.zeros[order]]
        weights = [dequantize(codes, quantized.scales, zeros, quantized.grid) for zeros in turned]
        errors[text] = min(distance(one, exact) for one in weights)
    best = min(errors, key=errors.get)
    return best if errors[best] < BETTER * before else ""


def _by_spread(quantized: QuantizedTensor) -> str:
    """The order in which the spreads of a row vary less than in the file's order; "" if there is none."""
    if quantized.grid.bits != 4 or quantized.shape[0] % 8:
        return ""
    spread = quantized.codes.reshape(*quantized.scales.shape, -1).float().std(-1)  # [out, groups]
    scales = quantized.scales.float()
    sound = ((spread > 0) & (scales > 0)).all(1).reshape(-1, 8).all(1).repeat_interleave(8)
    if not sound.any():
        return ""
    spread, scales = spread[sound].log(), scales[sound].log()
    variance = lambda order: (spread[order] + scales).var(1).median().item()  # noqa: E731
    before = variance(torch.arange(len(spread)))
    found = {text: variance(order) for text, order in _orders(len(spread)).items()}
    best = min(found, key=found.get)
    return best if found[best] < STEADIER * before else ""
