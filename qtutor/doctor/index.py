"""GPTQ's g_idx, which gives the group of every input."""

import torch

from qtutor.core.quantized import resolve_group_size
from qtutor.doctor.patient import Layer


def missing(layer: Layer) -> str | None:
    """A sentence if a layer of GPTQ has no g_idx; otherwise ``None``."""
    if layer.layout is None or "qweight" not in layer.tensors or layer.layout.kind == "gemm":
        return None
    if "g_idx" in layer.tensors:
        return None
    return (
        f"{layer.name}.g_idx is missing, and engines look up the group of each input there. Without desc_act the "
        "groups are in plain order: 'qtutor convert' to the format gptq writes it."
    )


def another_order(layer: Layer) -> str | None:
    """A sentence if the g_idx of a layer does anything but count the groups; otherwise ``None``."""
    index = layer.tensors.get("g_idx")
    if index is None:
        return None
    size = resolve_group_size(layer.layout.group_size, len(index))
    plain = torch.arange(len(index)) // size
    wrong = int((index.long() != plain).sum())
    if not wrong:
        return None
    if not 0 <= int(index.min()) <= int(index.max()) <= int(plain[-1]):
        return (
            f"{layer.name}.g_idx names groups from {int(index.min())} to {int(index.max())}, but there are only "
            f"{int(plain[-1]) + 1}: the file is damaged, so copy or export it again."
        )
    ordered = layer.layout.ordered
    why = "as desc_act says" if ordered else "though desc_act is false, so that engines do not look it up"
    what = "qtutor and vLLM's CPU kernels do not read that" if ordered else "set desc_act to true"
    return (
        f"{layer.name}.g_idx puts {wrong} of {len(index)} inputs into groups that are not those of their places "
        f"in the row, {why}: "
        f"{what}{', so take a version without desc_act' if ordered else ', or take a version without this order'}."
    )
