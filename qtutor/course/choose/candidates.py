"""The models that chapter 12 compares: every method, several bits and formats, each made anew from the float model."""

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path

from torch import nn

import qtutor
from qtutor.loading import weight_bytes
from qtutor.measure.losses import model_bytes
from qtutor.recipe import Recipe
from qtutor.runtime.scaled import ScaledLinear

GROUP = 64


@dataclass(frozen=True)
class Candidate:
    """One way to quantize: a recipe, or a type of GGUF file. family: the name of its kind in pictures."""

    family: str
    recipe: Recipe | None = None
    file: str | None = None

    @property
    def calibrated(self) -> bool:
        """Whether the recipe needs calibration text, so that its loss differs from draw to draw."""
        return self.recipe is not None and self.recipe.needs_calibration


def _recipes(family: str, method: str, bits: tuple[int, ...], label: str = "", **options) -> dict[str, Candidate]:
    name = f"{family}{label}"
    return {f"{name} {b}": Candidate(family, Recipe(method, b, **{"group_size": GROUP, **options})) for b in bits}


def _fixed(family: str, method: str, **options) -> dict[str, Candidate]:
    return {family: Candidate("fixed levels", Recipe(method, **options))}


# Names end in the bits. If nothing else is said: groups of 64, and zero points. Embeddings stay in 16 bits.
CANDIDATES = {
    **_recipes("RTN", "rtn", (8, 6, 5, 4, 3, 2)),
    **_recipes("RTN", "rtn", (4,), " g32", group_size=32),
    **_recipes("RTN", "rtn", (4, 3), " g128", group_size=128),
    **_recipes("HQQ", "hqq", (4, 3, 2)),
    **_recipes("SINQ", "sinq", (4, 3)),
    **_fixed("NF4", "nf4"),
    **_fixed("MXFP4", "mxfp4"),
    **_fixed("NVFP4", "nvfp4"),
    **_fixed("FP8", "fp8"),
    **_fixed("int8", "int8"),
    **_recipes("AWQ", "awq", (4, 3)),
    **_recipes("AWQ", "awq", (4,), " symmetric g128", group_size=128, symmetric=True),
    **_recipes("GPTQ", "gptq", (4, 3, 2)),
    **_recipes("GPTQ", "gptq", (4,), " symmetric", symmetric=True),
    "GPTQ on NVFP4": Candidate("GPTQ", Recipe("gptq", levels="nvfp4")),
    "GPTQ, embedding too 4": Candidate("GPTQ", Recipe("gptq", 4, GROUP, embeddings=True, lm_head=True)),
    **{
        f"{kind} file": Candidate("GGUF", file=kind)
        for kind in ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K")
    },
}
# Few enough for SmolLM2. No files: its float weights come from one, so llama.cpp's types would fit them too well.
OF_SMOLLM2 = (
    *("RTN 8", "RTN 4", "RTN 3", "HQQ 4", "SINQ 4", "NF4", "MXFP4", "NVFP4", "FP8", "int8"),
    *("AWQ 4", "AWQ 3", "GPTQ 4", "GPTQ 3"),
)
# The claim "all methods within 6 % at 4 bits" is about these.
AT_FOUR_BITS = ("RTN 4", "HQQ 4", "SINQ 4", "NF4", "MXFP4", "NVFP4", "AWQ 4", "GPTQ 4")
# Models whose share of right sums is shown beside perplexity, if they were asked for sums.
BESIDE_PERPLEXITY = ("RTN 4", "NF4", "MXFP4", "NVFP4", "AWQ 4", "GPTQ 4", "RTN 3", "AWQ 3", "GPTQ 3")


def made(model, tokenizer, candidate: Candidate, calibration=None):
    """A quantized copy of ``model``, and the bytes of its weights.

    calibration: token ids int64 ``[samples, length]``, for candidates that need text.
    """
    if candidate.file is not None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.gguf"
            qtutor.export(model, file, format="gguf", tokenizer=tokenizer, type=candidate.file)
            quantized = qtutor.load_quantized(file, device="cpu")
            return quantized, weight_bytes(file, quantized)
    quantized = copy.deepcopy(model)
    qtutor.quantize(quantized, candidate.recipe, calibration if candidate.calibrated else None, progress=False)
    return quantized, bytes_in_16(quantized)


def bytes_in_16(model: nn.Module) -> int:
    """Bytes of the weights if everything that is in 32 bits here, only for computing, is stored in 16.

    This includes the scales of SINQ's columns, which the peer stores in 16.
    """
    twice = sum(p.nbytes // 2 for p in model.parameters() if p.element_size() == 4)
    columns = sum(m.input_scale.nbytes // 2 for m in model.modules() if isinstance(m, ScaledLinear))
    return model_bytes(model) - twice - columns
