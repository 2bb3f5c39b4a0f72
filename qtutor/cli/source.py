"""SRC, and other files that a command reads: checks of these files before anything is loaded."""

import difflib
import math
import os
from pathlib import Path

from qtutor.cli.terminal import paragraph
from qtutor.errors import QtutorError
from qtutor.files import is_gguf, kind_of
from qtutor.formats.gguf_files import file_in, located
from qtutor.formats.smollm2 import WORD

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
SAFE = (
    "A pickle can run any code when it is read, so qtutor reads none. Take the model's *.safetensors; or, if you trust "
    "the file, load it with transformers and call model.save_pretrained(folder)."
)


def load(options, dtype=None):
    """``(model, tokenizer)`` of SRC, on --device."""
    return load_source(options.source, options.device, dtype)


def load_source(source: str, device: str | None, dtype=None):
    """``(model, tokenizer)`` of a SRC on the command line."""
    import qtutor

    check_source(source)
    return qtutor.load(source, dtype=dtype, device=check_device(device))


def check_source(source: str) -> None:
    """Raise :class:`QtutorError` if SRC cannot be a decoder, and say what can."""
    if source == "embedded":
        return
    source = str(located(source))  # for "smollm2" the file, if it is here
    path = Path(source)
    if not source.strip() or "\0" in source:
        raise QtutorError(f"SRC is {source!r}: name 'embedded', 'smollm2', a folder, a GGUF file or a hub id.")
    if not os.path.lexists(path):
        _suggest(path)
    elif path.is_dir():
        _check_folder(path)
    else:
        _check_file(path)


def check_rounded(source: str, allowed: bool) -> None:
    """Refuse a GGUF file whose weights were rounded before, unless ``allowed``; if allowed, warn on stderr."""
    file = None if source == "embedded" else file_in(source)
    if file is None:
        return
    from qtutor.gguf.parts import read_whole

    tensors = read_whole(file).tensors.values()
    types = {info.type.name for info in tensors} - {"F32", "F16", "BF16"}
    if not types:
        return
    bits = 8 * sum(info.nbytes for info in tensors) / sum(math.prod(info.shape) for info in tensors)
    before = (
        f"{file.name} holds weights that were rounded before ({', '.join(sorted(types))}: {bits:.2f} bits a weight); "
        "their float values are gone, and rounding them once more adds a second loss to the first. If there is a "
        "float checkpoint of the model, take that."
    )
    if not allowed:
        raise QtutorError(f"{before} To round these all the same, add --allow-requantize.")
    paragraph(f"qtutor: {before}")


def check_file(file: str, what: str) -> None:
    """Raise :class:`QtutorError` unless ``file`` is a regular file; what: the option that names it."""
    kind = kind_of(file)
    if kind != "a file":
        raise QtutorError(f"{what} {file}: that is {kind}. Name a file.")


def check_device(device: str | None) -> str | None:
    """``device`` in torch's form, if it exists on this machine."""
    if device is None:
        return None
    import torch

    try:
        kind = torch.device(device)
        torch.empty(1, device=kind)
    except (
        RuntimeError,
        AssertionError,
        NotImplementedError,
    ) as error:  # torch raises all three for a missing device
        said = str(error).strip().split("\n")[0].partition(". ")[0].rstrip(".")  # the rest is for torch's developers
        raise QtutorError(f"--device {device}: {said}. Name one that is here, like cpu.") from None
    if kind.type == "meta":
        raise QtutorError("--device meta holds shapes and no values: name one that computes, like cpu.")
    return device


def _check_file(path: Path) -> None:
    kind = kind_of(path)
    if kind != "a file":
        raise QtutorError(f"{path} is {kind}: name a folder, a GGUF file, a hub id, or 'embedded'.")
    if is_gguf(path):
        from qtutor.gguf.parts import part_of, read_whole  # imports numpy: --help should not wait for it

        if part_of(path):
            read_whole(path)  # raises if a part is missing
    elif path.suffix.lower() == ".safetensors":
        raise QtutorError(
            f"{path} is one file of a checkpoint: name the folder, {path.parent}, with its config.json and tokenizer. "
            f"('qtutor inspect {path}' shows what is in the file.)"
        )
    elif path.suffix.lower() in PICKLES:
        raise QtutorError(f"{path} looks like a pickle. {SAFE}")
    else:
        raise QtutorError(f"{path} is a file, but no GGUF file: name one, a folder, a hub id, or 'embedded'.")


def _check_folder(path: Path) -> None:
    names = sorted(name for name in os.listdir(path))
    ends = [Path(name).suffix.lower() for name in names]
    if "qtutor.json" in names or ".safetensors" in ends:
        return
    if ".gguf" in ends and (file := file_in(path)):  # raises if there are several
        return _check_file(file)
    pickles = [name for name, end in zip(names, ends, strict=True) if end in PICKLES]
    if pickles:
        from qtutor.formats.checkpoint import check_family

        check_family(path)  # an unknown family would be refused in any case
        raise QtutorError(f"{path} holds the weights as pickles ({', '.join(pickles[:3])}). {SAFE}")


def _suggest(path: Path) -> None:
    """A hub id is not on this disk; but there may be a file or folder with a similar name: suggest it."""
    with_names = path.parent if path.parent.is_dir() else None
    names = os.listdir(with_names) if with_names else []
    words = ["embedded", WORD] if len(path.parts) == 1 else []
    near = difflib.get_close_matches(path.name, [*names, *words], 1, 0.75)
    if near:
        known = near[0] if near[0] in words else path.parent / near[0]
        raise QtutorError(f"{path} does not exist; did you mean {known}?")
