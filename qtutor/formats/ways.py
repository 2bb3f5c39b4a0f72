"""The formats that each engine reads, with conditions: a table, with the best way of an engine first.

Each way says how it is known: an engine that ran it here, or the engine's source. Kernels change between versions, so
the only proof is a file that loads. :mod:`.targets` finds the way that fits a recipe, :mod:`.taking` the way that fits
a folder.
"""

from dataclasses import dataclass

from qtutor.core.quantized import PER_CHANNEL, PER_TENSOR


@dataclass(frozen=True)
class Way:
    """One format that an engine reads, and its conditions. An empty tuple means no condition.

    grid: "integers", or another grid's name. bits, symmetric, groups: the accepted values; the group -1 is one scale a
    row, and 0 is one scale a tensor. rows, columns: numbers that must divide a layer's outputs and inputs. mixed:
    whether layers may differ. joined: whether layers that the engine joins into one must be alike. head: whether the
    head may be packed. known: how this is known.
    """

    format: str
    grid: str = "integers"
    bits: tuple[int, ...] = ()
    symmetric: tuple[bool, ...] = (True, False)
    groups: tuple[int, ...] = ()
    rows: int = 1
    columns: int = 1
    mixed: bool = True
    joined: bool = True
    head: bool = False
    known: str = ""


GPU = {"rows": 64, "columns": 128, "groups": (PER_CHANNEL, 32, 64, 128)}  # of the Marlin kernels in vLLM and SGLang
CPU = GPU | {"rows": 32, "columns": 32}  # the group sizes that ran here; others may run too
FP4 = {"rows": 64, "columns": 128}  # of Marlin again, by prepare_fp4_layer_for_marlin; groups are those of the grid
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
ALL = tuple(range(2, 9))
RAN = "it ran here"
READ = "by its source, not run here"
CT, GPTQ, AWQ, BNB, MODELOPT, MLX = "compressed-tensors", "gptq", "awq", "bitsandbytes", "modelopt", "mlx"
WAYS = {
    "vllm": (
        Way(CT, bits=ALL, symmetric=(True,), **GPU, known=READ),  # 2, 3, 5, 6, 7 by the Humming kernels, PR 46389
        Way(CT, bits=(4, 8), **GPU, known=READ),
        Way(CT, grid="int8", rows=16, columns=16, known=READ),
        Way(CT, grid="fp8", groups=(PER_CHANNEL, PER_TENSOR), rows=16, columns=16, known=READ),
        Way(CT, grid="fp8 tiles", groups=(128,), rows=128, columns=128, known=READ),  # validate_fp8_block_shape
        Way(CT, grid="mxfp4", groups=(32,), **FP4, known=READ),  # compressed_tensors_w4a16_mxfp4.py
        Way(CT, grid="nvfp4", groups=(16,), **FP4, known=READ),  # compressed_tensors_w4a16_nvfp4.py
        Way(GPTQ, bits=(4, 8), symmetric=(True,), mixed=False, **GPU, known=READ),  # auto_gptq.py, TYPE_MAP
        Way(AWQ, bits=(4,), mixed=False, **GPU, known=READ),
        Way(MODELOPT, grid="fp8", groups=(PER_CHANNEL,), rows=16, columns=16, mixed=False, known=READ),
    ),
    "vllm-cpu": (
        Way(CT, bits=(4,), **CPU, known=RAN),
        Way(CT, grid="int8", known=RAN),
        Way(CT, grid="fp8", groups=(PER_CHANNEL,), rows=16, columns=16, known=RAN),
        Way(GPTQ, bits=(4,), symmetric=(True,), mixed=False, **CPU, known=RAN),
        Way(AWQ, bits=(4,), mixed=False, rows=32, columns=32, known=RAN),
        Way(MODELOPT, grid="fp8", groups=(PER_CHANNEL,), rows=16, columns=16, mixed=False, known=RAN),
    ),
    "sglang": (
        Way(CT, bits=(4, 8), **GPU, known=READ),  # asymmetric since PR 25292
        Way(CT, grid="int8", rows=16, columns=16, known=READ),
        Way(CT, grid="fp8", groups=(PER_CHANNEL, PER_TENSOR), rows=16, columns=16, known=READ),
        Way(CT, grid="mxfp4", groups=(32,), **FP4, known=READ),  # CompressedTensorsW4A16Mxfp4
        Way(CT, grid="nvfp4", groups=(16,), **FP4, known=READ),  # CompressedTensorsW4A16Fp4
        Way(GPTQ, bits=(4, 8), symmetric=(True,), mixed=False, **GPU, known=READ),
        Way(AWQ, bits=(4,), mixed=False, **GPU, known=READ),
    ),
    "tensorrt-llm": (
        # _torch/modules/linear.py, W4A16_AWQ_LinearMethod; its kernels have groups of 64 and 128.
        Way(MODELOPT, bits=(4,), symmetric=(True,), groups=(64, 128), rows=64, columns=64, mixed=False, known=READ),
        # The same file, FP8RowwiseLinearMethod.
        Way(MODELOPT, grid="fp8", groups=(PER_CHANNEL,), rows=16, columns=16, mixed=False, known=READ),
    ),
    "transformers": (
        Way(CT, bits=ALL, symmetric=(True,), joined=False, head=True, known=RAN),
        Way(CT, bits=ALL, mixed=False, joined=False, head=True, known=RAN),  # see the top of .compressed_tensors
        Way(CT, grid="fp8", groups=(PER_CHANNEL, PER_TENSOR), joined=False, head=True, known=RAN),
        Way(CT, grid="fp8 tiles", groups=(128,), columns=128, joined=False, head=True, known=RAN),
        Way(CT, grid="mxfp4", groups=(32,), joined=False, head=True, known=RAN),  # in bfloat16
        Way(CT, grid="nvfp4", groups=(16,), joined=False, head=True, known=RAN),
        Way(BNB, grid="int8", mixed=False, joined=False, head=True, known=RAN),  # first: it keeps the threshold
        Way(BNB, grid="nf4", groups=BLOCKS, mixed=False, joined=False, head=True, known=RAN),
        Way(BNB, grid="fp4", groups=BLOCKS, mixed=False, joined=False, head=True, known=RAN),
    ),
    "mlx": (Way(MLX, bits=(2, 3, 4, 5, 6, 8), groups=(32, 64, 128), joined=False, head=True, known=RAN),),  # on a CPU
}
TARGETS = (*WAYS, "llama.cpp")
