"""`qtutor inspect`: what a file or folder holds, told from headers alone, so that it is quick for files of any size."""

import json
from pathlib import Path

from qtutor.errors import QtutorError


def show(path: Path) -> None:
    """Show headers only: no tensor is read, so that this is quick for files of any size."""
    if not path.exists():
        raise QtutorError(f"{path} does not exist: name a .safetensors file, or a folder that holds some.")
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise QtutorError(f"{path} holds no .safetensors file, and 'qtutor inspect' reads no other kind yet.")
    tensors = {}
    for file in files:
        header = read_header(file)
        metadata = header.pop("__metadata__", {})
        print(f"{file}: {file.stat().st_size:,} bytes" + (f", metadata {metadata}" if metadata else ""))
        tensors.update(header)
    sizes = {name: about["data_offsets"][1] - about["data_offsets"][0] for name, about in tensors.items()}
    rows = [
        (name, about["dtype"], " x ".join(map(str, about["shape"])), f"{sizes[name]:,}")
        for name, about in sorted(tensors.items())
    ]
    print_table(("tensor", "dtype", "shape", "bytes"), [*rows, ("total", "", "", f"{sum(sizes.values()):,}")])
    if path.is_dir() and (path / "qtutor.json").is_file():
        print()
        print_layers(path / "qtutor.json", sizes)


def read_header(path: Path) -> dict:
    """The header of a safetensors file: 8 bytes of length, then JSON; checked against the file's true size."""
    if path.suffix != ".safetensors":
        raise QtutorError(
            f"{path}: 'qtutor inspect' reads .safetensors files, or a folder that holds some; this is neither."
        )
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if 8 + length <= size else b""
    try:
        header = json.loads(text)
        spans = [about["data_offsets"][1] for name, about in header.items() if name != "__metadata__"]
        expected = 8 + length + max(spans, default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise QtutorError(
            f"{path} has {size:,} bytes and no readable safetensors header: it was cut off, or is another kind of "
            "file. Copy, download or export it again."
        ) from None
    if size != expected:
        raise QtutorError(
            f"{path} has {size:,} bytes, but its header speaks of {expected:,}: it is "
            f"{'truncated' if size < expected else 'longer than it should be'}. Copy, download or export it again."
        )
    return header


def print_layers(path: Path, sizes: dict[str, int]) -> None:
    """How each layer of a folder that qtutor wrote is quantized; bits per weight counts its scales and zero points."""
    rows, weights, total = [], 0, 0
    try:
        for name, layer in json.loads(path.read_text(encoding="utf-8"))["layers"].items():
            count = layer["shape"][0] * layer["shape"][1]
            size = sum(sizes[key] for key in sizes if key.startswith(f"{name}.") and key != f"{name}.bias")
            grid = "symmetric" if layer["symmetric"] else "asymmetric"
            rows.append((name, str(layer["bits"]), str(layer["group_size"]), grid, f"{8 * size / count:.3f}"))
            weights, total = weights + count, total + size
        rows.append(("total", "", "", "", f"{8 * total / weights:.3f}"))
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise QtutorError(f"{path} is damaged ({error!r}): quantize the model again.") from None
    print_table(("quantized layer", "bits", "group size", "grid", "bits per weight"), rows)


def print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, tuple("-" * width for width in widths), *rows]:
        first, *rest = (cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        print("  ".join([first, *rest]).rstrip())
