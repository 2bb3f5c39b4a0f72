"""Recipes for quantizing: a :class:`Recipe` has transforms, one rounder and a grid, with exceptions for layers."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase

from qtutor.calibration.precision import WIDE
from qtutor.core.float_grid import FP8, FP8_TILES
from qtutor.core.grid import Grid, IntGrid
from qtutor.errors import QtutorError, check_choice
from qtutor.methods import gptq
from qtutor.methods.hessian import ACT_ORDERS, DAMPING, check_damping
from qtutor.methods.rounders import Listed, Nearest, Rounder
from qtutor.methods.transforms import Transform
from qtutor.recipe.exceptions import KEEP, OF_A_LAYER, changed
from qtutor.recipe.methods import BITS, CALIBRATED, GROUP_SIZE, LEVELS, METHODS, OWN_SIZES

__all__ = ["CALIBRATED", "CLIPS", "KEEP", "LEVELS", "METHODS", "OF_A_LAYER", "OWN_SIZES", "Recipe"]

CLIPS = ("auto", *gptq.CLIPS)
SWITCHES = ("symmetric", "static_groups", "duo", "propagate", "token_weights", "double", "embeddings", "lm_head")


@dataclass(frozen=True)
class Recipe:
    """How to quantize.

    method: ``"rtn"``, ``"hqq"`` and ``"sinq"``, which need no text (:mod:`qtutor.methods.hqq`, :mod:`~.methods.sinq`),
    ``"awq"``, ``"gptq"``, ``"awq+gptq"`` (AWQ's scales, then GPTQ's rounding), or bitsandbytes' ``"nf4"``, ``"fp4"``,
    ``"int8"``, or ``"fp8"`` (E4M3, inputs too), ``"mxfp4"``, ``"nvfp4"``. The methods from ``"nf4"`` on fix their bits
    and grid, and, except for nf4 and fp4, their groups. int8 and fp8 have one scale per row; fp8 may also have one per
    tensor, or, with a group_size of 128 or (128, 128), one per block of 128 x 128.
    levels: the levels to which rtn, awq and gptq round: ``"integers"`` of ``bits`` bits, or ``"fp8"``, ``"mxfp4"``,
    ``"nvfp4"`` (:mod:`qtutor.core.float_grid`), which fix bits and groups as the methods of these names do. So
    ``Recipe("gptq", levels="mxfp4")`` is GPTQ on MXFP4, and ``Recipe("rtn", levels="mxfp4")`` rounds as
    ``Recipe("mxfp4")`` does.
    bits: 2 to 8, by default 4. A fraction like 3.5 is a mean: each layer gets its own bits, depending on how much it
    matters on the calibration text (:mod:`qtutor.budget`).
    group_size: the number of weights that share a scale, by default 64; -1: one scale per row, 0: one per tensor.
    symmetric: the zero point is always the middle code.
    If a method or levels fix bits and groups, other values are refused; with ``None``, the fixed values are used.
    Afterwards, ``recipe.bits`` and ``recipe.group_size`` are the numbers that are used.
    clip: how to narrow the range of a group: ``"none"``, ``"mse"`` (least error of its weights) or ``"output"`` (least
    error of the layer's output, as AWQ or GPTQ counts it). ``"auto"``: ``"output"`` for AWQ and GPTQ, ``"none"`` for
    the others, and also if 128 x 128 weights share a scale.
    act_order, static_groups, damping: see :func:`qtutor.gptq.quantize`. duo: AWQ's scales depend on the weights, too.
    propagate: AWQ and GPTQ let each layer compensate for the errors of earlier layers
    (:mod:`qtutor.methods.propagation`), which doubles the time. ``None``: propagate if there is enough text, eight
    tokens for every input of the widest layer.
    token_weights: an error counts less at a token whose residual stream is large
    (:meth:`qtutor.calibration.block.CalibratedBlock.weights`). wide: models of at least this hidden size multiply
    rounded numbers during calibration, on CPUs on which this is faster; ``None``: no model does
    (:mod:`qtutor.calibration.precision`). It does not change two other savings of
    models wider than 512: sizes of the residual stream are estimated, and AWQ tries less, on less text.
    double: quantize the scales of NF4 and FP4, too.
    embeddings, lm_head: quantize these, too, always to nearest. With tied embeddings, lm_head becomes a separate
    matrix.
    target_size: in place of bits, the largest allowed size of the result's folder in bytes: each layer gets its own
    bits.
    layers: exceptions, by patterns of names: ``{"*.down_proj": {"bits": 8}, "model.layers.0.*": "float"}``. Each
    exception gives the options that differ (from :data:`OF_A_LAYER`), or ``"float"`` to leave the layer alone. Several
    patterns may fit a layer; for the same option, the last one decides.
    Raises :class:`QtutorError` for any other value.
    """

    method: str = "rtn"
    bits: float | None = None
    group_size: int | tuple[int, int] | None = None
    symmetric: bool = False
    clip: str = "auto"
    levels: str = "integers"
    act_order: str = "groups"
    static_groups: bool = False
    damping: float = DAMPING
    duo: bool = False
    propagate: bool | None = None
    token_weights: bool = True
    wide: int | None = WIDE
    double: bool = True
    embeddings: bool = False
    lm_head: bool = False
    target_size: int | None = None
    layers: Mapping[str, Mapping | str] = field(default_factory=dict, hash=False)

    def __post_init__(self):
        if self.method not in METHODS:
            raise QtutorError(f"method = {self.method!r} is not known; choose one of {', '.join(map(repr, METHODS))}.")
        check_choice("levels", self.levels, tuple(LEVELS))
        if self._on_fp8 and self.group_size in ((FP8_TILES.tile,) * 2, [FP8_TILES.tile] * 2):
            object.__setattr__(self, "group_size", FP8_TILES.tile)
        self._check_types()
        check_choice("clip", self.clip, CLIPS)
        if METHODS[self.method].codebook and LEVELS[self.levels]:
            raise QtutorError(f"levels = {self.levels!r}: method {self.method!r} has its own; leave levels out.")
        asked = LEVELS[self.levels] or self.clip not in ("auto", "none")
        if METHODS[self.method].rounder.finds_ranges and asked:
            raise QtutorError(
                f"levels = {self.levels!r}, clip = {self.clip!r}: method {self.method!r} finds ranges of integers by "
                "itself; leave both out."
            )
        if self.clip == "output" and not self.needs_calibration:
            raise QtutorError(f"clip = 'output' needs inputs, and method {self.method!r} looks at none: choose 'mse'.")
        check_choice("act_order", self.act_order, ACT_ORDERS)
        check_damping(self.damping)
        for pattern, change in self.layers.items():
            changed(self, pattern, change)  # raises for an exception that fits no layer at all
        codebook = self.codebook
        if codebook is None:
            self._settle(BITS, GROUP_SIZE)
            if self.target_size is not None:
                self._check_target_size()
            elif not self.is_mixed:
                IntGrid(self.bits, self.symmetric)  # raises for bits outside 2 ... 8
                object.__setattr__(self, "bits", int(self.bits))
            return
        whose = f"levels of {self.levels!r} have" if LEVELS[self.levels] else f"method {self.method!r} has"
        if self.target_size is not None:
            raise QtutorError(f"target_size chooses bits, and {whose} {codebook.bits} bits. Leave target_size out.")
        if self.bits not in (None, codebook.bits):
            raise QtutorError(f"bits = {self.bits}: {whose} {codebook.bits} bits. Leave it out.")
        if self.clip not in ("auto", "none") and (not LEVELS[self.levels] or codebook == FP8_TILES):
            who = "a scale for 128 x 128 weights" if LEVELS[self.levels] else f"method {self.method!r}"
            raise QtutorError(f"clip = {self.clip!r}: {who} takes every group's whole range. Leave clip out.")
        sizes = OWN_SIZES.get(codebook)
        if sizes and self.group_size not in (None, *sizes):
            fit = " or ".join(map(str, (*sizes, FP8_TILES.tile) if self._on_fp8 else sizes))
            raise QtutorError(f"group_size = {self.group_size}: {whose} {fit}. Leave it out, or choose another method.")
        self._settle(codebook.bits, sizes[0] if sizes else GROUP_SIZE)
        object.__setattr__(self, "symmetric", True)

    def _settle(self, bits: int, group_size: int) -> None:
        """Set these values where none was given, so that this frozen dataclass shows the values that will be used."""
        for name, value in {"bits": bits, "group_size": group_size}.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def _check_types(self) -> None:
        """A text like "no" would count as True, and a list of patterns as none."""
        for name in SWITCHES:
            value = getattr(self, name)
            if not isinstance(value, bool) and not (name == "propagate" and value is None):
                raise QtutorError(f"{name} = {value!r}: True or False is needed.")
        if not isinstance(self.group_size, int | None) or isinstance(self.group_size, bool):
            raise QtutorError(f"group_size = {self.group_size!r}: a whole number of weights is needed, or -1.")
        if not isinstance(self.layers, Mapping) or not all(isinstance(pattern, str) for pattern in self.layers):
            raise QtutorError(
                f"layers = {self.layers!r}: a dict of exceptions by pattern is needed, like {{'*.down_proj': 'float'}}."
            )

    def _check_target_size(self) -> None:
        if type(self.target_size) is not int or self.target_size < 1:
            raise QtutorError(f"target_size = {self.target_size!r}: a whole number of bytes is needed.")
        if self.bits != BITS:
            raise QtutorError(f"bits = {self.bits} and target_size = {self.target_size:,}: give one of the two.")

    @property
    def is_mixed(self) -> bool:
        """Whether a budget is given (a mean of bits, or a size), so that the layers' bits are still to be chosen."""
        mean = isinstance(self.bits, float) and not self.bits.is_integer() and 2 < self.bits < 8
        return mean or self.target_size is not None

    @property
    def why_text(self) -> str:
        """The part of this recipe that needs calibration text, as an error names it."""
        if METHODS[self.method].calibrated or not self.is_mixed:
            return f"method {next(self._calibrated, self.method)!r}"
        return f"bits = {self.bits}" if self.target_size is None else "target_size"

    @property
    def codebook(self) -> Grid | None:
        """The grid that the method or ``levels`` name; ``None`` if bits and symmetry define it."""
        if self._on_fp8 and self.group_size == FP8_TILES.tile:
            return FP8_TILES
        return self._named_grid

    @property
    def _named_grid(self) -> Grid | None:
        return METHODS[self.method].codebook or LEVELS[self.levels]

    @property
    def _on_fp8(self) -> bool:
        """Whether the levels are those of FP8, of which there are two grids: scales of rows, or of tiles."""
        return self._named_grid == FP8

    @property
    def grid(self) -> Grid:
        return self.codebook or IntGrid(self.bits, self.symmetric)

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """The changes of a decoder block before it is rounded, none of which changes the block's output."""
        return tuple(transform.of(self) for transform in METHODS[self.method].transforms)

    @property
    def rounder(self) -> Rounder:
        """The rounder for the layers of the decoder blocks."""
        return METHODS[self.method].rounder.of(self)

    @property
    def own_clip(self) -> str:
        """How to narrow ranges: ``clip``, or what ``"auto"`` stands for."""
        if self.codebook == FP8_TILES:
            return "none"
        return METHODS[self.method].clip if self.clip == "auto" else self.clip

    @property
    def plain_rounder(self) -> Rounder:
        """The rounder for embeddings and lm_head, which ignores their inputs."""
        if METHODS[self.method].rounder is Listed:  # its scales may be rounded, too, which no other rounder does
            return self.rounder
        return Nearest("mse" if self.clip == "mse" else "none")

    @property
    def needs_calibration(self) -> bool:
        """Whether at least one layer needs calibration text."""
        return self.is_mixed or any(self._calibrated)

    @property
    def _calibrated(self) -> Iterator[str]:
        """The methods that look at inputs, of all layers or of some."""
        changes = [change for change in self.layers.values() if change != KEEP]
        methods = [self.method, *(change["method"] for change in changes if "method" in change)]
        return (method for method in methods if METHODS[method].calibrated)

    def of_layers(self, names: Iterable[str], floats: Iterable[str] = ()) -> dict[str, "Recipe"]:
        """The recipe of every layer, by its full name; layers that stay in float are left out.

        floats: names of matrices that stay in float anyway. Raises :class:`QtutorError` for a pattern that fits none of
        the ``names``, except if it says ``"float"`` and fits one of the ``floats``.
        """
        floats = list(floats)
        recipes = dict.fromkeys(names, replace(self, layers={}))
        for pattern, change in self.layers.items():
            fitting = [name for name in recipes if fnmatchcase(name, pattern)]
            if not fitting and not (change == KEEP and any(fnmatchcase(name, pattern) for name in floats)):
                some = ", ".join(list(recipes)[:3])
                raise QtutorError(f"layers: no layer is called {pattern!r}. Patterns fit whole names, like {some}.")
            for name in fitting:
                recipes[name] = changed(self, pattern, change, recipes[name])
        return {name: recipe for name, recipe in recipes.items() if recipe is not None}

    def as_dict(self) -> dict:
        """All options by name, in types that JSON can hold."""
        return asdict(self)
