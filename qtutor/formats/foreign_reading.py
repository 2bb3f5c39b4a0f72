"""Quantized checkpoints that other tools wrote, or that we wrote for other engines, as our own packed layers.

Nothing is rounded again: codes, scales and zero points become those of :class:`QuantLinear`. The order of reading is
such that a false claim in a file costs nothing. First come the settings in config.json (or in a file beside it, for
older tools), then the headers of the weights, then the decoder, built of shapes. Then the stored form of each layer by
its settings is compared with the headers. Only then are the tensors read. No code from a checkpoint is run, and a
pattern in it that could take hours to match is refused.

If the settings call a layer quantized and the file has a plain float weight for it, the layer stays in float, as in the
engines. Left out: an order of columns that an engine looks up while it multiplies (``g_idx`` that is not trivial).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from qtutor.core.quantized import QuantizedTensor, resolve_group_size
from qtutor.errors import QtutorError, is_failure, naming, said
from qtutor.families import family_called, linear_layers
from qtutor.formats.checkpoint import CONFIG, STORED, dtype_of, headers_in, take_settings
from qtutor.formats.comparing import NAMES, blocks_of, check_finite, compare
from qtutor.formats.documents import AGAIN, file_in, read_json
from qtutor.formats.foreign import Format, Layout, Wanted
from qtutor.formats.foreign_settings import IN_CONFIG, format_of, settings_in
from qtutor.formats.headers import Stored
from qtutor.formats.transformers_files import config_of, empty_model, filled
from qtutor.runtime.int8 import Int8Linear
from qtutor.runtime.kinds import layer_of
from qtutor.runtime.linear import QuantLinear


@dataclass(frozen=True)
class Opened:
    """All that can be said about a folder without reading a tensor.

    model: the decoder, of shapes alone, and no layer packed. layouts: of the packed layers by name. files: by tensor,
    its file and how it is stored there.
    """

    folder: Path
    form: Format
    settings: dict
    model: nn.Module
    where: str
    layouts: dict[str, Layout]
    files: dict[str, tuple[Path, Stored]]

    @contextmanager
    def reading(self) -> Iterator[Callable[[str], torch.Tensor]]:
        """A function from a tensor's name in the folder to the tensor; the files stay open while the block runs."""
        opened = {}

        def read(name: str) -> torch.Tensor:
            path = self.files[name][0]
            try:
                if path not in opened:
                    opened[path] = safe_open(path, "pt")
                tensor = opened[path].get_tensor(name)
            except BaseException as error:  # it changed meanwhile, or this version does not know something in it
                if not is_failure(error):
                    raise
                raise QtutorError(f"{path} cannot be read ({said(error)}). {AGAIN}") from error
            check_finite(str(path), {name: tensor})
            return tensor

        yield read

    def decode(self, name: str, read) -> QuantizedTensor:
        """The packed layer ``name``; raises :class:`QtutorError` naming the layer if its numbers do not fit."""
        layout, place = self.layouts[name], self.model.get_submodule(name)
        kinds = [
            kind for kind in self.form.tensors_of_layer(layout, *place.weight.shape) if f"{name}.{kind}" in self.files
        ]
        with naming(f"{self.folder}: {name}"):
            return self.form.decode(
                {kind: read(f"{name}.{kind}") for kind in kinds}, layout, *tuple(place.weight.shape)
            )

    def input_scale(self, name: str, read) -> torch.Tensor | None:
        """The numbers that the inputs of a layer are multiplied by, float32 ``[in]``; ``None`` if all of them are 1."""
        key = f"{name}.{self.form.input_scale}"
        if not self.form.input_scale or key not in self.files:
            return None
        scale = read(key).float()
        return None if (scale == 1).all() else scale


def load(folder: str | Path, device: str | None = None, dtype: torch.dtype | str = "auto") -> nn.Module:
    """The decoder in ``folder``, its quantized layers packed as they are in the file, on ``device`` (default: the GPU).

    dtype: of everything that is not quantized; ``"auto"``: the config's. Raises :class:`QtutorError` naming the file,
    the layer or the setting that is missing, damaged, or unknown.
    """
    folder = Path(folder)
    found = opened(folder)
    model = found.model
    dtype = _dtype(found) if dtype == "auto" else dtype_of(dtype)
    model.config.dtype = dtype
    tensors = {}
    plain = [
        name for name in model.state_dict() if name.rpartition(".")[0] not in found.layouts and name in found.files
    ]
    with found.reading() as read:
        for name, layout in found.layouts.items():
            bias = f"{name}.bias" if model.get_submodule(name).bias is not None else None
            bias = None if bias is None else read(bias).to(dtype)
            layer = _layer(found.decode(name, read), layout, bias, found.input_scale(name, read))
            model.set_submodule(name, layer)
            tensors |= {f"{name}.{key}": tensor for key, tensor in layer.state_dict().items()}
        tensors |= {name: read(name).to(dtype) for name in plain}
        _check_spare_biases(found, read)
    model = filled(model, tensors, found.where, device)
    take_settings(model, folder)
    return model


def opened(folder: Path) -> Opened:
    """The settings, the decoder of shapes and the headers of ``folder``, each compared with the others."""
    found = settings_in(folder)
    if found is None:
        raise QtutorError(f"{folder / CONFIG} has no quantization_config: for a float checkpoint use qtutor.load.")
    settings, source = found
    form = format_of(settings, source)
    path = file_in(folder, CONFIG)
    files = {name: (file, one) for file, header in headers_in(folder).items() for name, one in header.items()}
    values = {key: value for key, value in read_json(path).items() if key not in IN_CONFIG}
    family = family_called(values.get("model_type"), values)
    head = family.head
    if any(name.startswith(f"{head}.") and name != f"{head}.weight" for name in files):
        values["tie_word_embeddings"] = False  # the head is packed, so it is a matrix of its own
    config = config_of(values, str(path), blocks_of(family, files))
    config.name_or_path = str(folder)
    model = empty_model(config, str(path))
    places = linear_layers(model) | {head: model.get_submodule(head)}
    layouts = form.layouts(settings, list(places), source)
    rest = {name: one for name, (_, one) in files.items()}
    packed = {}
    for name, layout in layouts.items():
        shape = tuple(places[name].weight.shape)
        with naming(f"{source}: {name}"):
            wanted = form.tensors_of_layer(layout, *shape)
            resolve_group_size(layout.group_size, shape[1])
        if _is_packed(name, wanted, rest):
            _check_stored(folder, name, wanted, rest)
            if "weight" not in wanted and f"{name}.weight" in rest:
                raise QtutorError(
                    f"{folder}: {name} is there twice, packed and as {name}.weight, and engines take one or the other: "
                    f"two checkpoints were mixed. {AGAIN}"
                )
            for kind in wanted:
                rest.pop(f"{name}.{kind}", None)
            rest[f"{name}.weight"] = Stored("F16", shape, 0)
            packed[name] = layout
            if places[name].bias is None:
                rest.pop(f"{name}.bias", None)  # GPTQ's older tools write zeros there: see _check_spare_biases
    if not packed:
        raise QtutorError(
            f"{folder}: by {source} its layers are quantized by {form.method}, but there is no such layer. {AGAIN}"
        )
    tied = (f"{family.embedding}.weight", f"{head}.weight") if config.tie_word_embeddings else ()
    compare(str(folder), rest, model, tied, STORED)
    return Opened(folder, form, settings, model, str(path), packed, files)


def _is_packed(name: str, wanted: dict[str, Wanted], rest: dict[str, Stored]) -> bool:
    """Whether a layer is there in packed form: it has a tensor that a float layer does not have."""
    weight = rest.get(f"{name}.weight")
    if weight is not None and weight.dtype in STORED:
        return any(f"{name}.{kind}" in rest for kind in wanted if kind != "weight")
    return weight is not None or any(f"{name}.{kind}" in rest for kind in wanted)


def _check_stored(folder: Path, name: str, wanted: dict[str, Wanted], rest: dict[str, Stored]) -> None:
    """Raise :class:`QtutorError` if a tensor of a packed layer is missing, or has another shape or dtype."""
    for kind, (shape, dtypes, optional) in wanted.items():
        found = rest.get(f"{name}.{kind}")
        if found is None and not optional:
            raise QtutorError(f"{folder}: {name}.{kind} is missing, but its layer is stored packed. {AGAIN}")
        if found is not None and (found.dtype not in dtypes or shape not in (None, found.shape)):
            expected = f"{' or '.join(dtypes)} {list(shape or [])}"
            raise QtutorError(
                f"{folder}: {name}.{kind} is {found}, expected {expected} by the settings: they belong to another "
                f"checkpoint, or the file is damaged. {AGAIN}"
            )


def _layer(
    quantized: QuantizedTensor, layout: Layout, bias: torch.Tensor | None, scale: torch.Tensor | None
) -> QuantLinear:
    """A layer that computes with ``quantized`` in the way of its format; it has the right size already, unlike a meta
    one.

    scale: the numbers that its inputs are multiplied by, if any.
    """
    layer = layer_of(quantized, bias, scale)
    if isinstance(layer, Int8Linear):
        layer.threshold = layout.threshold
    return layer


def _check_spare_biases(found: Opened, read) -> None:
    """A bias that the decoder does not have must be zero: older tools write one for every layer."""
    for name in found.layouts:
        spare = f"{name}.bias"
        if spare in found.files and found.model.get_submodule(name).bias is None and read(spare).count_nonzero():
            raise QtutorError(f"{found.folder}: {spare} is not zero, and this decoder has no bias there. {AGAIN}")


def _dtype(found: Opened) -> torch.dtype:
    """The dtype of the config, or else of the first float tensor that is no part of a packed layer."""
    names = {name: dtype for dtype, name in NAMES.items()}
    plain = [name for name in found.model.state_dict() if name.rpartition(".")[0] not in found.layouts]
    return found.model.config.dtype or next(names[found.files[name][1].dtype] for name in plain if name in found.files)
