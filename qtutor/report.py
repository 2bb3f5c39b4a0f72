"""What :func:`qtutor.quantize` did: a :class:`Report` with a row for each layer."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from qtutor.recipe import Recipe

MOST_ROWS = 30  # a longer table is folded into one line for each kind of layer, and the worst layers
WORST = 5
LOST = 0.9  # above this relative error, almost nothing of a layer is left


@dataclass(frozen=True)
class LayerReport:
    """One quantized layer: its name, shape ``[out, in]``, relative error ``|W - Q| / |W|``, sizes in bytes.

    W are the weights and Q the quantized ones. output_error: ``|X (W - Q)^T| / |X W^T|`` on the calibration text; here
    W are the weights just before rounding, which propagation may have changed. ``None`` without calibration.
    note: what was not done as requested.
    """

    name: str
    shape: tuple[int, int]
    error: float
    bits_per_weight: float
    bytes_before: int
    bytes_after: int
    output_error: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Report:
    """What :func:`qtutor.quantize` did: the recipe and a row per layer.

    ``print(report)`` shows a table, folded if there are many layers; :meth:`table` always shows all of them.
    """

    recipe: Recipe
    rows: tuple[LayerReport, ...]

    @property
    def bytes_before(self) -> int:
        return sum(row.bytes_before for row in self.rows)

    @property
    def bytes_after(self) -> int:
        return sum(row.bytes_after for row in self.rows)

    @property
    def notes(self) -> list[str]:
        """The layers for which something was not done as requested, each with the reason."""
        return [f"{row.name}: {row.note}" for row in self.rows if row.note]

    def __str__(self) -> str:
        if len(self.rows) <= MOST_ROWS:
            return self.table()
        worst = sorted(self.rows, key=lambda row: -(row.error if row.output_error is None else row.output_error))
        by = "output" if worst[0].output_error is not None else "error"
        lines = [f"{len(self.rows)} layers by kind, the means of their errors and the sums of their bytes", ""]
        lines += [self._table(self._kinds(), "kind of layer"), "", f"The {WORST} with the largest {by}:", ""]
        lines += self._table(worst[:WORST]).splitlines()[:-1]  # without the last line: the total of five says nothing
        return self._with_notes(lines)

    def table(self) -> str:
        """The table with a line for every layer, even if there are many."""
        return self._with_notes([self._table(self.rows)])

    def _kinds(self) -> list[LayerReport]:
        """One row for all layers that have the same name in their decoder blocks, the same shape and the same bits."""
        kinds = {}
        for row in self.rows:
            name = re.sub(r"(?<=\.)\d+(?=\.)", "*", row.name)
            kinds.setdefault((name, row.shape, round(row.bits_per_weight, 3)), []).append(row)
        return [_together(f"{len(rows):3} {name}", rows) for (name, *_), rows in kinds.items()]

    def _with_notes(self, lines: list[str]) -> str:
        notes = self.notes
        more = [f"and {len(notes) - MOST_ROWS} more notes, in report.notes"] if len(notes) > MOST_ROWS else []
        return "\n".join(lines + [f"ATTENTION, {note}" for note in notes[:MOST_ROWS] + more])

    def _table(self, rows: Sequence[LayerReport], what: str = "layer") -> str:
        width = max([len(row.name) for row in rows] + [5, len(what)])
        output = any(row.output_error is not None for row in rows)
        head = f"{what:{width}}  {'shape':>13}  {'error':>7}" + (f"  {'output':>7}" if output else "")
        head += f"  {'bits':>6}  {'before':>11}  {'after':>11}"
        lines = [head, "-" * len(head)]
        for row in rows:
            shape = f"{row.shape[0]} x {row.shape[1]}"
            known = "" if row.output_error is None else f"{row.output_error:.4f}"
            lines.append(
                f"{row.name:{width}}  {shape:>13}  {row.error:7.4f}"
                + (f"  {known:>7}" if output else "")
                + f"  {row.bits_per_weight:6.3f}  {row.bytes_before:11,}  {row.bytes_after:11,}"
            )
        share = f"{self.bytes_after / max(self.bytes_before, 1):.0%}"
        gap = " " * (9 if output else 0)
        lines.append(
            f"{'total':{width}}  {'':13}  {'':7}{gap}  {share:>6}  {self.bytes_before:11,}  {self.bytes_after:11,}"
        )
        return "\n".join(lines)


def _together(name: str, rows: list[LayerReport]) -> LayerReport:
    """One row for several ``rows``: the means of their errors and the sums of their bytes."""
    outputs = [row.output_error for row in rows if row.output_error is not None]
    return LayerReport(
        name,
        rows[0].shape,
        sum(row.error for row in rows) / len(rows),
        sum(row.bits_per_weight for row in rows) / len(rows),
        sum(row.bytes_before for row in rows),
        sum(row.bytes_after for row in rows),
        sum(outputs) / len(outputs) if outputs else None,
    )


def weight_error(back: torch.Tensor, exact: torch.Tensor) -> float:
    """``|W - Q| / |W|`` of float32 matrices ``[out, in]``, with Q = ``back`` and W = ``exact``; 0 if W is all zeros."""
    largest = exact.abs().amax().item() if exact.numel() else 0.0
    if largest and not 1e-15 < largest < 1e15:  # float32 cannot hold the squares of such numbers
        back, exact = back.double(), exact.double()
    return ((back - exact).norm() / exact.norm().clamp(min=torch.finfo(exact.dtype).tiny)).item()


def what_is_lost(back: torch.Tensor, exact: torch.Tensor, scales: torch.Tensor, error: float) -> str:
    """The report's note on a layer that lost whole groups, or nearly all of its weights; "" for all other layers.

    back, exact: float32 ``[out, in]``; scales: ``[out, groups]`` or ``[1, 1]``. Scales have 16 bits, as in the formats
    of all engines. The scale of a group whose largest weight is below about 4e-7 (at 4 bits) then rounds to zero, and
    so do its weights. Scales of 32 bits would keep these weights, but those engines could not read the files.
    """
    if not exact.numel():
        return ""
    grouped, came = (matrix.reshape(*scales.shape, -1) for matrix in (exact, back))
    gone = (came == 0).all(-1) & (grouped != 0).any(-1)
    if gone.any():
        return (
            f"{int(gone.sum())} of {gone.numel()} groups became zero: their weights, {grouped[gone].abs().max():.2g} "
            f"at most, are too small for {8 * scales.dtype.itemsize}-bit scales. Leave the layer in float"
        )
    # Propagation may change a layer by more than its own size; only a layer that became small has lost its weights.
    if error > LOST and back.norm() < exact.norm() / 2:
        return f"almost nothing is left of its weights (error {error:.2f}): use more bits, or smaller groups"
    return ""


def next_steps(
    out: str, source: str, chats: bool, ollama: bool = True, more: Mapping[str, list[str]] = MappingProxyType({})
) -> str:
    """The commands that load the model written to ``out``, one line each, under the engine that runs them.

    Only qtutor reads a folder of ours; llama.cpp and the tools built on it read a .gguf file. source: the model from
    which ``out`` was made, to measure against. chats: whether its tokenizer has a chat template. ollama: whether Ollama
    accepts the file. more: commands of other engines that read ``out``.
    """
    quoted = shlex.quote(out)
    talk = "--chat" if chats else "'some text'"
    engines = {"qtutor": [f"qtutor generate {quoted} {talk}", f"qtutor eval {quoted} --against {shlex.quote(source)}"]}
    if Path(out).suffix.lower() == ".gguf":
        engines["llama.cpp"] = [f"llama-cli -m {quoted}", f"llama-server -m {quoted}"]
        name, place = shlex.quote(Path(out).stem.lower()), shlex.quote(os.path.abspath(out))
        if ollama:
            engines["Ollama"] = [f"echo FROM {place} > Modelfile", f"ollama create {name}", f"ollama run {name}"]
        engines["Python"] = [f"from llama_cpp import Llama; llm = Llama({out!r})"]
    else:
        engines |= more
        engines["Python"] = [f"import qtutor; model, tokenizer = qtutor.load({out!r})"]
    lines = [(engine if not at else "", line) for engine, ours in engines.items() for at, line in enumerate(ours)]
    width = max(10, *map(len, engines))
    return "\n".join(["To load it:"] + [f"  {engine:{width}}  {line}" for engine, line in lines])
