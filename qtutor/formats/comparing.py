"""Compares the tensors in a checkpoint's file with those that its model needs, from the header alone."""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from qtutor.core.quantized import all_finite
from qtutor.errors import QtutorError, is_failure, said, shown
from qtutor.families import Family, family_of
from qtutor.formats.documents import AGAIN
from qtutor.formats.headers import Stored

NAMES = {
    torch.uint8: "U8",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}  # names of torch's dtypes in headers
FLOATS = ("F16", "BF16", "F32")


def blocks_in(names: Iterable[str], blocks: str) -> int:
    """How many blocks have tensors, by their names, which begin with ``blocks``."""
    begin = f"{blocks}."
    return len({name[len(begin) :].partition(".")[0] for name in names if name.startswith(begin)})


def blocks_of(family: Family, names: Collection[str]) -> int:
    """How many blocks of a decoder have tensors; if it was saved without its head, names lack the first part."""
    return blocks_in(names, family.blocks) or blocks_in(names, family.blocks.partition(".")[2])


def compare(
    where: str,
    found: Mapping[str, Stored],
    model: nn.Module,
    optional: Collection[str],
    floats: tuple[str, ...] = FLOATS,
) -> None:
    """Raise :class:`QtutorError` listing tensors that are missing, not expected, or of another shape or dtype.

    model: with the right shapes. Integers have to have their own dtype, parameters may have any of ``floats``, and
    buffers (the stored form of a packed layer) have to have theirs. optional: tied tensors, of which at least one has
    to be there.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in found and name not in optional]
    if optional and not found.keys() & set(optional):
        missing += sorted(optional)
    angles = _angles_in(family_of(model))
    unexpected = [name for name in found if name not in wanted and not angles.fullmatch(name)]
    misfits = []
    for name in wanted.keys() & found.keys():
        free = name in parameters or name.endswith(".bias")
        dtypes = floats if free else (NAMES[wanted[name].dtype],)
        shape = tuple(wanted[name].shape)
        if found[name].shape != shape or found[name].dtype not in dtypes:
            misfits.append(f"{name} ({found[name]}, expected {' or '.join(dtypes)} {list(shape)})")
    if missing or unexpected or misfits:
        raise QtutorError(
            f"{where}: {listed(missing, 'missing')}{listed(unexpected, 'not expected')}"
            f"{listed(sorted(misfits), 'of another shape or dtype')}The file is damaged, or belongs to another "
            "config: copy, download or export the checkpoint again."
        )


def _angles_in(family: Family) -> re.Pattern:
    """The names of position angles: checkpoints of older versions hold them in each block, now they are computed."""
    blocks, attention = re.escape(family.blocks), re.escape(family.halves[0].parent)
    return re.compile(rf"{blocks}\.\d+\.{attention}\.rotary_emb\.inv_freq")


def listed(names: list[str], what: str) -> str:
    """A sentence that counts ``names`` and shows the first three; empty if there are none."""
    if not names:
        return ""
    some = ", ".join(shown(name, 160)[1:-1] for name in names[:3])
    return f"{len(names)} tensor{'s are' if len(names) > 1 else ' is'} {what}: {some}{' ...' * (len(names) > 3)}. "


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file whose header was read before, mapped from the file."""
    try:
        return load_file(path)
    except BaseException as error:  # it changed meanwhile, or this version of safetensors does not know something in it
        if not is_failure(error):
            raise
        raise QtutorError(f"{path} cannot be read ({said(error)}). {AGAIN}") from error


def check_finite(where: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise :class:`QtutorError` naming the first tensor that holds NaN or an infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not all_finite(tensor):
            count = int((~torch.isfinite(tensor.float())).sum())
            raise QtutorError(
                f"{where}: tensor {shown(name)} holds {count} numbers that are NaN or infinite. The file is damaged: "
                "copy, download or export it again."
            )
