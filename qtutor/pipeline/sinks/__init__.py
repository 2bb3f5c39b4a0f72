"""Where finished layers go: into the model (here), or into a folder that grows block by block (:mod:`.folder`).

:func:`qtutor.pipeline.finished` yields three kinds of items:

    Arrived    the walk has reached a block: all blocks before it are finished
    Packed     a layer that is packed
    Changed    a tensor that stays in float, with a new value (:class:`qtutor.pipeline.rounding.Changed`)
"""

from dataclasses import dataclass

import torch
from torch import nn

from qtutor.pipeline.rounding import Changed
from qtutor.report import LayerReport
from qtutor.runtime.linear import QuantWeight


@dataclass(frozen=True)
class Packed:
    """A finished layer: the module that replaces ``name``, and its row in the report."""

    name: str
    module: QuantWeight
    row: LayerReport


@dataclass(frozen=True)
class Arrived:
    """All blocks before number ``index`` are finished.

    states: the inputs of this block, and those of its twin if there is one, float32 ``[samples, length, hidden]`` each;
    empty without calibration. The walk overwrites them when it goes on.
    """

    index: int
    states: tuple[torch.Tensor, ...] = ()


Item = Packed | Changed | Arrived


class IntoModel:
    """Puts finished items into the model, all at the end: a failure or an interrupt leaves the model as it was."""

    def __init__(self, model: nn.Module):
        self.model, self.items = model, []

    @property
    def rows(self) -> list[LayerReport]:
        return [item.row for item in self.items if isinstance(item, Packed)]

    def take(self, item: Item) -> None:
        if not isinstance(item, Arrived):
            self.items.append(item)

    def finish(self) -> None:
        """The only step that changes the model."""
        for item in self.items:
            if isinstance(item, Packed):
                self.model.set_submodule(item.name, item.module)
            else:
                parameter = self.model.get_parameter(item.name)
                parameter.data = item.value.to(parameter.dtype)
