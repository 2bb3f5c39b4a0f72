"""What to do with a model (:class:`Recipe`), and what was done (:class:`Report`)."""

from dataclasses import asdict, dataclass

from qtutor.core.codebooks import FP4, INT8, NF4
from qtutor.core.grid import Grid, IntGrid
from qtutor.core.quantized import PER_CHANNEL
from qtutor.errors import QtutorError
from qtutor.methods.gptq import ACT_ORDERS, DAMPING

METHODS = ("rtn", "awq", "gptq", "awq+gptq", "nf4", "fp4", "int8")
CODEBOOKS = {"nf4": NF4, "fp4": FP4, "int8": INT8}
CALIBRATED = ("awq", "gptq", "awq+gptq")
CLIPS = (None, "none", "mse", "output")


@dataclass(frozen=True)
class Recipe:
    """How to quantize.

    method: ``"rtn"``, ``"awq"``, ``"gptq"``, ``"awq+gptq"`` (AWQ's scales, then GPTQ's rounding), or bitsandbytes'
    ``"nf4"``, ``"fp4"``, ``"int8"`` (which come with bits, a grid and, for int8, one scale a row of their own).
    bits: 2 to 8. group_size: weights that share a scale; -1 one scale a row, 0 one a tensor. symmetric: zero point
    fixed in the middle.
    clip: how far the range of a group is narrowed: ``"none"``, ``"mse"`` (least error of its weights) or ``"output"``
    (least error of the layer's output, as AWQ or GPTQ counts it). ``None``: the method's own, which is ``"output"`` for
    AWQ and GPTQ and ``"none"`` for the others.
    act_order, static_groups, damping: see :func:`qtutor.gptq.quantize`. duo: AWQ's scales look at weights too.
    propagate: AWQ and GPTQ let each layer make up for what the layers before it did (:mod:`.propagation`), which
    doubles the time. ``None``: where there is text enough for it to be worth that, eight tokens for every input of the
    widest layer.
    double: NF4's and FP4's scales are quantized too.
    embeddings, lm_head: quantize these too, always to nearest (lm_head of a model with tied embeddings becomes a matrix
    of its own). Raises :class:`QtutorError` for a value outside these.
    """

    method: str = "rtn"
    bits: int = 4
    group_size: int = 64
    symmetric: bool = False
    clip: str | None = None
    act_order: str = "groups"
    static_groups: bool = False
    damping: float = DAMPING
    duo: bool = False
    propagate: bool | None = None
    double: bool = True
    embeddings: bool = False
    lm_head: bool = False

    def __post_init__(self):
        if self.method not in METHODS:
            raise QtutorError(f"method = {self.method!r} is not known; choose one of {', '.join(map(repr, METHODS))}.")
        if self.clip not in CLIPS:
            raise QtutorError(f"clip = {self.clip!r}: choose one of {', '.join(map(repr, CLIPS))}.")
        if self.clip == "output" and not self.needs_calibration:
            raise QtutorError(f"clip = 'output' needs inputs, and method {self.method!r} looks at none: choose 'mse'.")
        if self.act_order not in ACT_ORDERS:
            raise QtutorError(f"act_order = {self.act_order!r}: choose one of {', '.join(map(repr, ACT_ORDERS))}.")
        codebook = CODEBOOKS.get(self.method)
        if codebook is None:
            IntGrid(self.bits, self.symmetric)  # refuses bits outside 2 ... 8
            return
        if self.bits not in (4, codebook.bits):  # 4 is what nobody asked for
            raise QtutorError(f"bits = {self.bits}: method {self.method!r} has {codebook.bits} bits.")
        if self.clip not in (None, "none"):
            raise QtutorError(f"clip = {self.clip!r}: method {self.method!r} takes every group's whole range.")
        own = {"bits": codebook.bits, "symmetric": True}
        for name, value in (own | {"group_size": PER_CHANNEL} if self.method == "int8" else own).items():
            object.__setattr__(self, name, value)  # a frozen dataclass that tells what will be done

    @property
    def grid(self) -> Grid:
        return CODEBOOKS.get(self.method) or IntGrid(self.bits, self.symmetric)

    @property
    def needs_calibration(self) -> bool:
        return self.method in CALIBRATED

    @property
    def own_clip(self) -> str:
        """``"none"`` for whole ranges, ``"mse"`` or ``"output"``."""
        if self.clip is None:
            return "output" if self.needs_calibration else "none"
        return self.clip

    def as_dict(self) -> dict:
        return asdict(self)


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
