"""A float checkpoint that never is in memory as a whole: a decoder of shapes alone, whose weights stay in their files.

What a block or a layer needs is mapped from the files when it is asked for, and handed back afterwards.
"""

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from qtutor.calibration.mapped import Weights, page_out
from qtutor.decoder import EMBEDDED
from qtutor.errors import naming
from qtutor.families import decoder_blocks, family_of
from qtutor.formats import checkpoint, gguf, hub, native
from qtutor.formats.documents import reading
from qtutor.formats.tokenizers_files import tokenizer_in
from qtutor.formats.transformers_files import outlined, usual_device, with_tied
from qtutor.guards.model import decoder_of


class FileWeights(Weights):
    """Weights in files. model: of shapes, in the dtype that it is to have. tensors: mapped, by name in the model."""

    def __init__(self, model: nn.Module, tensors: Mapping[str, torch.Tensor], device: str, files: Iterable[Path]):
        super().__init__(model, files)
        self.places = tuple({file.parent for file in self.files})
        self.tensors, self.device = tensors, device
        self.dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}

    def tensor(self, name: str) -> torch.Tensor:
        stored = self.tensors[name]
        wanted = stored.to(device=self.device, dtype=self.dtypes[name])
        if wanted is not stored:
            page_out([stored])
        return wanted

    def release(self, tensors: Iterable[torch.Tensor]) -> None:
        page_out(tensors)

    def block(self, index: int) -> nn.Module:
        own = decoder_blocks(self.model)[index]
        begin = f"{family_of(self.model).blocks}.{index}."
        module, values = copy.deepcopy(own), {}
        for name in own.state_dict():
            found = self.tensor(begin + name)
            values[name] = found.to(torch.float32, copy=True)  # in the model's dtype first, as it would be in memory
            self.release([found])
        module.load_state_dict(values, strict=True, assign=True)
        return module.requires_grad_(False)

    @contextlib.contextmanager
    def around_blocks(self) -> Iterator[None]:
        family, empty = family_of(self.model), {}
        try:
            for name, parameter in list(self.model.named_parameters(remove_duplicate=False)):
                if not name.startswith((f"{family.blocks}.", f"{family.head}.")):
                    empty[name] = parameter
                    self._put(name, nn.Parameter(self.tensor(name), requires_grad=False))
            yield
        finally:
            for name, parameter in empty.items():
                self.release([self.model.get_parameter(name)])
                self._put(name, parameter)

    def _put(self, name: str, parameter: nn.Parameter) -> None:
        owner, _, own = name.rpartition(".")
        setattr(self.model.get_submodule(owner), own, parameter)


def opened(source, device: str | None = None) -> tuple[Weights, object]:
    """The weights of whatever :func:`qtutor.load` takes, and the tokenizer.

    A folder or a hub id of a float checkpoint, and the embedded decoder, stay in their files; a GGUF file is decoded
    into memory. Raises :class:`QtutorError` as :func:`qtutor.load` does.
    """
    from qtutor.loading import load

    with reading(source):
        folder = _float_folder(source)
        if folder is None:
            model, tokenizer = load(source, "auto", device)
            file = gguf.file_in(source)
            return Weights(decoder_of(model), [] if file is None else [file]), tokenizer
        with naming(f"{source}: the checkpoint cannot be loaded"):
            weights = streamed(folder, device)
            weights.model.config.name_or_path = str(EMBEDDED if source == "embedded" else source)
            return weights, tokenizer_in(folder, weights.model.config)


def streamed(folder: Path, device: str | None = None) -> FileWeights:
    """The float checkpoint in ``folder``, in its own dtype. Raises as :func:`.checkpoint.load` does."""
    found = checkpoint.described(folder, "auto")
    model = outlined(found.model, found.dtype, found.where, device)
    tensors = with_tied(model, found.mapped(), found.where)
    checkpoint.take_settings(model, folder)
    return FileWeights(model, tensors, usual_device(device), [folder / checkpoint.CONFIG, *found.files])


def _float_folder(source) -> Path | None:
    """The folder of a float checkpoint that ``source`` names, downloaded if it is a hub id; ``None`` for others."""
    if source == "embedded":
        return EMBEDDED
    path = Path(source)
    if gguf.file_in(source) is not None or (path / native.ABOUT).is_file() or path.is_file():
        return None
    return path if path.exists() else hub.folder_of(str(source))
