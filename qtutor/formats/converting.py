"""From one checkpoint format to another without a second rounding: the same codes, scales and zero points, other bytes.

    convert("a GPTQ folder", "out", format="compressed-tensors")

If a format cannot hold the grid, or an engine does not accept it, the error says why, for which layers, and what would
fit. Left out: GGUF as the output format, since its types round by rules of their own.
"""

from pathlib import Path

from torch import nn

from qtutor.errors import QtutorError, check_choice
from qtutor.formats import ENGINES, FOREIGN, export, gguf_packed, gguf_reading
from qtutor.formats import target as place_of
from qtutor.formats.documents import reading
from qtutor.formats.foreign import packed_layers
from qtutor.formats.gguf_files import file_in, located
from qtutor.formats.gptq import VERSIONS
from qtutor.formats.taking import check_holds
from qtutor.formats.targets import pick_for, ways_into
from qtutor.formats.tokenizers_files import tokenizer_in_gguf
from qtutor.runtime.linear import QuantWeight

AGAIN = "A conversion rounds nothing: for another grid quantize the float checkpoint again, or choose another format."
NO_GGUF = (
    "a GGUF file's types round weights by rules of their own, so a conversion to it would round a second time. Encode "
    "the float checkpoint: qtutor quantize FLOAT OUT.gguf; or accept the second loss, and 'qtutor quantize' this one."
)


def convert(
    source: str | Path,
    out: str | Path,
    format: str | None = None,
    target: str | None = None,
    device: str | None = None,
    version: int | None = None,
) -> tuple[nn.Module, object, str]:
    """Write the quantized checkpoint ``source`` to the folder ``out`` in another format, and return the model, its
    tokenizer and the format.

    source: anything that :func:`qtutor.load` accepts, if its layers are packed; GGUF files only if our grid has their
    levels. target: the engine that will read the output; it picks the format if none is given. version: of the format
    gptq, 1 or 2; the default is the one that most readers accept (:mod:`.gptq`), independent of the source's version.
    Raises :class:`QtutorError` for a source that is not quantized, for a grid that the format does not hold or the
    engine does not accept, and as :func:`qtutor.load` and :func:`qtutor.export` do.
    """
    if format is target is None and Path(out).suffix.lower() == ".gguf":
        raise QtutorError(f"{source}: {NO_GGUF}")
    if format is None and target is None:
        raise QtutorError(f"name a format ({', '.join([*FOREIGN, 'qtutor'])}) or a target ({', '.join(ENGINES)}).")
    if version is not None and format != "gptq":
        other = f"the format is {format!r}" if format else f"{target!r} picks its format"
        raise QtutorError(
            f"version = {version!r} belongs to the format 'gptq', and {other}: leave it out, or take the format 'gptq'."
        )
    check_choice("version", version, (None, *VERSIONS))
    if target is not None:
        ways_into(target, format)
    if format == "gguf" or target == "llama.cpp":
        raise QtutorError(f"{source}: {NO_GGUF}")
    need = 0 if file_in(source) else _weights_in(source)
    place_of(out, format or "compressed-tensors", sources=[located(source)], need=need)
    model, tokenizer = packed(source, device)
    if format != "qtutor":
        layers = packed_layers(model)
        try:
            format = pick_for(target, layers, format).format if target else format
            check_holds(format, layers, model)
        except QtutorError as error:
            raise QtutorError(f"{source}: {error} {AGAIN}") from None
    export(model, out, format, tokenizer, version=version)
    return model, tokenizer, format


def packed(source: str | Path, device: str | None = None) -> tuple[nn.Module, object]:
    """``(model, tokenizer)`` of a quantized checkpoint with its layers packed. Raises for one that is not quantized."""
    from qtutor.loading import load

    with reading(source):
        file = None if source == "embedded" else file_in(source)
        if file is not None:
            return gguf_packed.load(file, device), tokenizer_in_gguf(gguf_reading.opened(file), file)
        model, tokenizer = load(source, device=device)
    if not any(isinstance(module, QuantWeight) for module in model.modules()):
        raise QtutorError(f"{source} is a float checkpoint, but only quantized ones can be converted: use 'quantize'.")
    return model, tokenizer


def _weights_in(source: str | Path) -> int:
    """Half the bytes of the weights in a folder: at least about so many are written, in any format."""
    folder = Path(source)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) // 2 if folder.is_dir() else 0
