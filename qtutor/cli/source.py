"""SRC, and other files that a command reads: what can be said of them before anything is loaded."""

import difflib
import os
from pathlib import Path

from qtutor.errors import QtutorError
from qtutor.files import is_gguf, kind_of

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
SAFE = (
    "A pickle can run any code when it is read, so qtutor reads none. Take the model's *.safetensors; or, if you trust "
    "the file, load it with transformers and call model.save_pretrained(folder)."
)


def load(options, dtype=None):
    """``(model, tokenizer)`` of SRC, on --device."""
    return load_source(options.source, options.device, dtype)


def load_source(source: str, device: str | None, dtype=None):
    """``(model, tokenizer)`` of what a command calls a decoder."""
    import qtutor

    check_source(source)
    return qtutor.load(source, dtype=dtype, device=check_device(device))


def check_source(source: str) -> None:
    """Raise :class:`QtutorError` where SRC cannot be a decoder, and say what can."""
    path = Path(source)
    if source == "embedded":
        return
    if not source.strip() or "\0" in source:
        raise QtutorError(f"SRC is {source!r}: name 'embedded', a folder, a GGUF file or a hub id.")
    if not os.path.lexists(path):
        _suggest(path)
    elif path.is_dir():
        _check_folder(path)
    else:
        _check_file(path)


def check_file(file: str, what: str) -> None:
    """Raise :class:`QtutorError` unless ``file`` is a regular file; what: the option that names it."""
    kind = kind_of(file)
    if kind != "a file":
        raise QtutorError(f"{what} {file}: that is {kind}. Name a file.")


def check_device(device: str | None) -> str | None:
    """``device`` as torch knows it, if it is there."""
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
    ) as error:  # torch says all three for one that is not there
        said = str(error).strip().split("\n")[0].rstrip(".")
        raise QtutorError(f"--device {device}: {said}. Name one that is here, like cpu.") from None
    if kind.type == "meta":
        raise QtutorError("--device meta holds shapes and no values: name one that computes, like cpu.")
    return device


def _check_file(path: Path) -> None:
    kind = kind_of(path)
    if kind != "a file":
        raise QtutorError(f"{path} is {kind}: name a folder, a GGUF file, a hub id, or 'embedded'.")
    if is_gguf(path):
        from qtutor.gguf.parts import part_of  # numpy: --help shall not wait for it

        part = part_of(path)
        if part:
            raise QtutorError(f"{path} is {part}. Join them first: llama-gguf-split --merge {path.name} whole.gguf")
    elif path.suffix.lower() == ".safetensors":
        raise QtutorError(
            f"{path} is one file of a checkpoint: name the folder, {path.parent}, with its config.json and tokenizer. "
            f"('qtutor inspect {path}' shows what is in the file.)"
        )
    elif path.suffix.lower() in PICKLES:
        raise QtutorError(f"{path} looks like a pickle. {SAFE}")
    else:
        raise QtutorError(f"{path} is a file and no GGUF file: name that, a folder, a hub id, or 'embedded'.")


def _check_folder(path: Path) -> None:
    names = sorted(name for name in os.listdir(path))
    ends = [Path(name).suffix.lower() for name in names]
    if "qtutor.json" in names or "model.gguf" in names or ".safetensors" in ends:
        return
    pickles = [name for name, end in zip(names, ends, strict=True) if end in PICKLES]
    ggufs = [name for name, end in zip(names, ends, strict=True) if end == ".gguf"]
    if pickles:
        from qtutor.formats.checkpoint import check_family

        check_family(path)  # a family that is not known would be refused all the same
        raise QtutorError(f"{path} holds the weights as pickles ({', '.join(pickles[:3])}). {SAFE}")
    if ggufs:
        raise QtutorError(f"{path} holds {', '.join(ggufs[:5])}: name the file itself, {path / ggufs[0]}.")


def _suggest(path: Path) -> None:
    """A hub id is looked for elsewhere; but something of nearly that name may lie here."""
    with_names = path.parent if path.parent.is_dir() else None
    names = os.listdir(with_names) if with_names else []
    near = difflib.get_close_matches(path.name, [*names, *(["embedded"] if len(path.parts) == 1 else [])], 1, 0.75)
    if near:
        known = near[0] if near[0] == "embedded" else path.parent / near[0]
        raise QtutorError(f"{path} does not exist; did you mean {known}?")
