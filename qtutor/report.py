"""What :func:`qtutor.quantize` did: a :class:`Report` with a row for each layer."""

from dataclasses import dataclass

from qtutor.recipe import Recipe


@dataclass(frozen=True)
class LayerReport:
    """One quantized layer: its name, shape ``[out, in]``, relative error ``|W - Q| / |W|``, sizes in bytes.

    output_error: ``|X (W - Q)^T| / |X W^T|`` on the calibration text, where there was one, W being what was to be
    rounded there (with propagation no longer the original weights). note: what went otherwise
    than asked for.
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
    """What :func:`qtutor.quantize` did: the recipe and a row per layer. ``print(report)`` shows a table."""

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
        """Layers that did not go as asked for, each with the reason."""
        return [f"{row.name}: {row.note}" for row in self.rows if row.note]

    def __str__(self) -> str:
        width = max([len(row.name) for row in self.rows] + [5])
        output = any(row.output_error is not None for row in self.rows)
        head = f"{'layer':{width}}  {'shape':>13}  {'error':>7}" + (f"  {'output':>7}" if output else "")
        head += f"  {'bits':>6}  {'before':>11}  {'after':>11}"
        lines = [head, "-" * len(head)]
        for row in self.rows:
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
        return "\n".join(lines + [f"ATTENTION, {note}" for note in self.notes])
