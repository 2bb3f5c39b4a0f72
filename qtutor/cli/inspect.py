"""`qtutor inspect`: the contents of a file or folder."""

from pathlib import Path


def add_to(command) -> None:
    """Add ``inspect`` to the commands; ``command`` creates its parser."""
    description = "Show what a file or folder holds: tensors, their bytes, the recipe; or a block of a GGUF file."
    block = "inspect model.gguf --tensor blk.0.attn_q.weight --block 3"
    sub = command(inspect, "inspect", description, ["inspect out", "inspect out/model.safetensors", block])
    sub.add_argument(
        "file", metavar="FILE", help="a .safetensors or .gguf file, a folder with some, 'embedded' or 'smollm2'"
    )
    sub.add_argument("--tensor", metavar="NAME", help="a tensor of a GGUF file: show one of its blocks, byte by byte")
    sub.add_argument("--block", type=int, metavar="N", help="which block of the tensor, counted from 0 (default: 0)")


def inspect(options) -> int:
    """``qtutor inspect``: the contents of a checkpoint."""
    from qtutor import inspection
    from qtutor.decoder import EMBEDDED
    from qtutor.formats.gguf_files import located

    file = EMBEDDED if options.file == "embedded" else Path(located(options.file))
    inspection.show(file, options.tensor, options.block)
    return 0
