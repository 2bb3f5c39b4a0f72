"""A checkpoint that is never in memory as a whole: a decoder of shapes alone, whose weights stay in their files.

The weights of a block or a layer are mapped from the files when they are needed, and released afterwards. From a GGUF
file they are decoded instead, and then dropped.
"""

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from qtutor.calibration.mapped import Weights, page_out, trim_heap
from qtutor.errors import naming
from qtutor.families import decoder_blocks, family_of
from qtutor.formats import checkpoint, gguf_reading
from qtutor.formats.documents import reading
from qtutor.formats.sources import GGUF, OTHERS, OURS, find
from qtutor.formats.tokenizers_files import tokenizer_in, tokenizer_in_gguf
from qtutor.formats.transformers_files import outlined, usual_device, with_tied
from qtutor.gguf.parts import Whole
from qtutor.guards.model import decoder_of


class FileWeights(Weights):
    """Weights in files. model: of shapes, in the dtype that it will have. tensors: by name in the model.

    files, places: see :class:`Weights`.
    """

    def __init__(
        self,
        model: nn.Module,
        tensors: Mapping[str, torch.Tensor],
        device: str | None,
        files: Iterable[Path],
        places: Iterable[Path],
    ):
        super().__init__(model, files)
        self.places = tuple(places)
        self.tensors, self.device = tensors, usual_device(device)
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
        trim_heap()  # memory that was left over from the block before
        own = decoder_blocks(self.model)[index]
        begin = f"{family_of(self.model).blocks}.{index}."
        module, values = copy.deepcopy(own), {}
        for name in own.state_dict():
            found = self.tensor(begin + name)
            values[name] = found.to(torch.float32, copy=True)  # in the model's dtype first, as if it were in memory
            self.release([found])
        module.load_state_dict(values, strict=True, assign=True)
        return module.requires_grad_(False)

    def around_blocks(self, head: bool = False) -> contextlib.AbstractContextManager:
        family = family_of(self.model)
        left_out = (f"{family.blocks}.",) if head else (f"{family.blocks}.", f"{family.head}.")
        return self._present(lambda name: not name.startswith(left_out))

    @contextlib.contextmanager
    def _present(self, wanted: Callable[[str], bool]) -> Iterator[None]:
        """Inside, the model has the weights with ``wanted`` names; mapped ones use memory only where they are read."""
        empty, brought = {}, {}
        try:
            for name, parameter in list(self.model.named_parameters(remove_duplicate=False)):
                if wanted(name):
                    if parameter not in brought:
                        brought[parameter] = nn.Parameter(self.tensor(name), requires_grad=False)
                    empty[name] = parameter
                    self._put(name, brought[parameter])
            yield
        finally:
            for name, parameter in empty.items():
                self._put(name, parameter)
            self.release(brought.values())

    def _put(self, name: str, parameter: nn.Parameter) -> None:
        owner, _, own = name.rpartition(".")
        setattr(self.model.get_submodule(owner), own, parameter)


def opened(source, device: str | None = None) -> tuple[Weights, object]:
    """The weights and the tokenizer of any source that :func:`qtutor.load` accepts; weights stay in their files.

    Packed layers are loaded into memory, so that the caller can report that they cannot be quantized again. Raises
    :class:`QtutorError` as :func:`qtutor.load` does.
    """
    from qtutor.loading import load

    with reading(source):
        found = find(source)
        if found.kind == GGUF:
            return _of_gguf(found.path, device)
        if found.kind in (OURS, OTHERS):
            model, tokenizer = load(source, device=device)
            return Weights(decoder_of(model)), tokenizer
        with naming(f"{source}: the checkpoint cannot be loaded"):
            weights = _of_folder(found.path, device)
            weights.model.config.name_or_path = str(found.path if source == "embedded" else source)
            return weights, tokenizer_in(found.path, weights.model.config)


def _of_folder(folder: Path, device: str | None) -> FileWeights:
    """The float checkpoint in ``folder``, in its own dtype, mapped."""
    found = checkpoint.described(folder, "auto")
    model = outlined(found.model, found.dtype, found.where, device)
    tensors = with_tied(model, found.mapped(), found.where)
    checkpoint.take_settings(model, folder)
    return FileWeights(model, tensors, device, [folder / checkpoint.CONFIG, *found.files], [folder])


def _of_gguf(file: Path, device: str | None) -> tuple[FileWeights, object]:
    """The float32 weights of a GGUF file, each decoded when it is requested; and the tokenizer."""
    found = gguf_reading.opened(file)
    tokenizer = tokenizer_in_gguf(found, file)
    found.model.config.dtype = torch.float32
    model = outlined(found.model, torch.float32, str(file), device)
    gguf_reading.take_ends(model, found.file)
    parts = [part.path for part in found.file.parts] if isinstance(found.file, Whole) else [file]  # as they were read
    return FileWeights(model, Decoded(found), device, parts, parts), tokenizer


class Decoded(Mapping):
    """The parameters of a model in a GGUF file, decoded again each time one is requested."""

    def __init__(self, opened: gguf_reading.Opened):
        family = family_of(opened.model)
        self.opened, self.tied = opened, {}
        if opened.model.config.tie_word_embeddings:  # the file has one of the two
            self.tied[f"{family.head}.weight"] = f"{family.embedding}.weight"

    def __getitem__(self, name: str) -> torch.Tensor:
        return gguf_reading.decoded_one(self.opened, name if name in self.opened.wanted else self.tied[name])

    def __iter__(self) -> Iterator[str]:
        return iter({**self.opened.wanted, **self.tied})

    def __len__(self) -> int:
        return len({**self.opened.wanted, **self.tied})
