"""A checkpoint that may be ill: opened as far as possible, its layers decoded one by one, without refusing.

Our readers stop at the first fault, as they should. Here their message is kept (:attr:`Patient.problem`,
:attr:`Layer.problem`), and everything else that can be read is read.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from qtutor.core.grid import IntGrid
from qtutor.core.quantized import QuantizedTensor
from qtutor.errors import QtutorError
from qtutor.formats import FOREIGN, checkpoint, foreign_reading, foreign_settings, native
from qtutor.formats.checkpoint import STORED
from qtutor.formats.documents import file_in, read_json, reading
from qtutor.formats.foreign import Layout
from qtutor.formats.gguf_files import file_in as gguf_in
from qtutor.formats.headers import Stored
from qtutor.guards import promises
from qtutor.runtime.linear import QuantLinear


@dataclass(frozen=True)
class Layer:
    """One packed layer. tensors: as stored, by the part of the name after the layer's.

    quantized: the decoded matrix; ``None`` if it cannot be decoded, and then ``problem`` says why. exact: FLOAT's
    weights, float32 ``[out, in]``.
    """

    name: str
    layout: Layout | None
    tensors: dict[str, torch.Tensor]
    quantized: QuantizedTensor | None
    problem: str = ""
    exact: torch.Tensor | None = None


@dataclass
class Patient:
    """All that is known of a checkpoint. form: its format's name. files: by tensor, its file and how it is stored."""

    name: str
    folder: Path
    form: str
    settings: dict = field(default_factory=dict)
    values: dict = field(default_factory=dict)  # of config.json
    files: dict[str, tuple[Path, Stored]] = field(default_factory=dict)
    foreign: foreign_reading.Opened | None = None
    problem: str = ""
    device: str | None = None
    group_sizes: dict[str, int] = field(default_factory=dict)  # of layers that were read; bitsandbytes stores it there
    float_weights: object = None  # a qtutor.calibration.mapped.Weights

    @cached_property
    def loaded(self) -> tuple[nn.Module, object]:
        """``(model, tokenizer)``, as :func:`qtutor.load` returns them; raises the same errors."""
        from qtutor.loading import load

        return load(self.name, device=self.device)

    @property
    def packed(self) -> int:
        """How many layers are packed, as far as that is known."""
        if self.foreign is not None:
            return len(self.foreign.layouts)
        return 0 if self.problem else len(self.quant_layers())

    def quant_layers(self) -> dict[str, QuantLinear]:
        """The packed layers of the loaded model, or layers of shapes alone, which are enough for the engines' check."""
        if self.foreign is not None:
            return {name: _of_shapes(self, name) for name in self.foreign.layouts}
        model = self.loaded[0]
        return {name: module for name, module in model.named_modules() if isinstance(module, QuantLinear)}

    def layers(self) -> Iterator[Layer]:
        """Every packed layer; each is read once."""
        if self.foreign is not None:
            for name in self.foreign.layouts:
                layer = self._foreign_layer(name)
                if layer.quantized is not None:
                    self.group_sizes[name] = layer.quantized.group_size
                yield replace(layer, exact=_for_scaled_inputs(self.exact(name), layer, self.foreign.form.input_scale))
        elif not self.problem:
            for name, module in self.quant_layers().items():
                quantized, exact, times = module.quantized(), self.exact(name), getattr(module, "input_scale", None)
                exact = exact if exact is None or times is None else exact / times.cpu()
                yield Layer(name, None, {"scales": quantized.scales}, quantized, exact=exact)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Rows and columns that FLOAT has to have too: of packed layers, or of all matrices of a model that loads."""
        if self.foreign is not None:
            found = self.foreign.model
            return {name: tuple(found.get_submodule(name).weight.shape) for name in self.foreign.layouts}
        if self.problem:
            return {}
        found = promises.shapes(self.loaded[0]).items()
        return {name.removesuffix(".weight"): shape for name, shape in found if len(shape) == 2}

    def floats(self) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """Float matrices that FLOAT has too: name, weights, FLOAT's weights, float32 ``[out, in]``."""
        if self.float_weights is None or self.problem:
            return
        theirs = self.float_weights.model.state_dict()
        if self.foreign is None:
            stored = {name: tuple(tensor.shape) for name, tensor in self.loaded[0].named_parameters()}  # no buffers
        else:
            stored = {name: tuple(one.shape) for name, (_, one) in self.files.items() if one.dtype in STORED}
        for name, shape in stored.items():
            matrix = name.endswith(".weight") and len(shape) == 2
            if not matrix or name not in theirs or tuple(theirs[name].shape) != shape:
                continue
            tensor = self.tensor(name) if self.foreign else self.loaded[0].get_parameter(name).detach()
            layer = name.removesuffix(".weight")
            if self.foreign is None or layer not in self.foreign.layouts:
                yield layer, tensor.float().cpu(), self.exact(layer)

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor as it is stored; its numbers are not checked."""
        with safe_open(self.files[name][0], "pt") as file:
            return file.get_tensor(name)

    def exact(self, name: str) -> torch.Tensor | None:
        """FLOAT's weights of a layer, ``None`` without FLOAT."""
        return None if self.float_weights is None else self.float_weights.tensor(f"{name}.weight").float().cpu()

    def _foreign_layer(self, name: str) -> Layer:
        found, layout = self.foreign, self.foreign.layouts[name]
        shape = tuple(found.model.get_submodule(name).weight.shape)
        kinds = [kind for kind in found.form.tensors_of_layer(layout, *shape) if f"{name}.{kind}" in self.files]
        tensors = {kind: self.tensor(f"{name}.{kind}") for kind in kinds}
        try:
            return Layer(name, layout, tensors, found.form.decode(tensors, layout, *shape))
        except QtutorError as error:
            problem = f"{name}: {error}"
        free = isinstance(layout.grid, IntGrid) and layout.grid.symmetric and "qzeros" in tensors
        plain = replace(layout, grid=IntGrid(layout.grid.bits)) if free else layout  # zero points as they are stored
        rest = {kind: tensor for kind, tensor in tensors.items() if kind != "g_idx"}
        try:
            return Layer(name, layout, tensors, found.form.decode(rest, plain, *shape) if free else None, problem)
        except QtutorError:
            return Layer(name, layout, tensors, None, problem)


def _for_scaled_inputs(exact: torch.Tensor | None, layer: Layer, kind: str) -> torch.Tensor | None:
    """FLOAT's weights, divided by the numbers by which the layer multiplies its inputs, if it does."""
    return exact / layer.tensors[kind].float() if exact is not None and kind in layer.tensors else exact


def opened(source: str | Path, against: str | Path | None, device: str | None) -> Patient:
    """The checkpoint ``source``. Raises :class:`QtutorError` if there is none, or if FLOAT cannot be its model."""
    folder = Path(source)
    with reading(source):
        if source != "embedded" and not folder.exists():
            raise QtutorError(f"{source} does not exist: name a checkpoint's folder, or a GGUF file.")
        file = gguf_in(source) if source != "embedded" else None
        form = "gguf" if file else "qtutor" if (folder / native.ABOUT).is_file() else "a float checkpoint"
        patient = Patient(str(source), folder, form, device=device)
        if folder.is_dir() and form == "a float checkpoint":
            _open_foreign(patient)
        if patient.foreign is None and not patient.problem:
            try:
                _ = patient.loaded
            except QtutorError as error:
                patient.problem = str(error)
        if against is not None:
            _compare(patient, against, device)
    return patient


def _open_foreign(patient: Patient) -> None:
    """Read settings, headers and layouts until the reader stops; then keep its message."""
    folder = patient.folder
    try:
        config = file_in(folder, checkpoint.CONFIG)
        patient.values = {} if config is None else read_json(config)
        found = foreign_settings.settings_in(folder)
        if found is None:
            return
        patient.settings, where = found
        method = patient.settings.get("quant_method")
        patient.form = method if isinstance(method, str) and method in FOREIGN else "an unknown format"
        for path, header in checkpoint.headers_in(folder).items():
            patient.files |= {name: (path, stored) for name, stored in header.items()}
        foreign_settings.format_of(patient.settings, where)
        patient.foreign = foreign_reading.opened(folder)
    except QtutorError as error:
        patient.problem = str(error)


def _of_shapes(patient: Patient, name: str) -> QuantLinear:
    layout, place = patient.foreign.layouts[name], patient.foreign.model.get_submodule(name)
    with torch.device("meta"):
        return QuantLinear(*place.weight.shape, layout.grid, patient.group_sizes.get(name, layout.group_size))


def _compare(patient: Patient, against: str | Path, device: str | None) -> None:
    """Keep FLOAT's weights, if they belong to a decoder of the same shapes."""
    from qtutor.formats.streamed import opened as streamed

    weights = streamed(str(against), device)[0]
    if any(isinstance(module, QuantLinear) for module in weights.model.modules()):
        raise QtutorError(f"--against {against} is quantized itself: name the float checkpoint.")
    theirs = weights.model.state_dict()
    for name, shape in patient.shapes().items():
        own = theirs.get(f"{name}.weight")
        if own is None or tuple(own.shape) != shape:
            raise QtutorError(
                f"{patient.name}: {name} is {list(shape)}, and in {against} it is "
                f"{'not there' if own is None else list(own.shape)}: that is not the model which was quantized. Name "
                "the float checkpoint that this one was made of."
            )
    patient.float_weights = weights
