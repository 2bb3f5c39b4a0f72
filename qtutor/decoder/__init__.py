"""The embedded decoder: a small Llama that writes Python, and how to load it or any other.

Corpus and questions: :mod:`.corpus`, :mod:`.tasks`; training: :mod:`.train`; what it is and is not:
``weights/README.md``.
"""

import os
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from qtutor.errors import QtutorError
from qtutor.pipeline import decoder_blocks

EMBEDDED = Path(__file__).parent / "weights"


def load_decoder(source: str | os.PathLike | None = None, dtype: torch.dtype | None = None, device: str | None = None):
    """``(model, tokenizer)``: the embedded decoder, or the checkpoint ``source`` as transformers takes it.

    source: ``None`` for the embedded one, a folder, or a hub id. dtype: float32 if not given (bf16 is what ships; small
    models are computed in float32 so that results agree between CPUs), ``"auto"`` for the checkpoint's own.
    device: by itself the GPU if there is one. No code from a checkpoint is run and no pickle is read.
    Raises :class:`QtutorError` for a missing or truncated file, a hub id that cannot be reached, an unknown family.
    """
    where = EMBEDDED if source is None else source
    shown = logging.is_progress_bar_enabled()
    if source is None:
        logging.disable_progress_bar()  # the embedded decoder loads in a fraction of a second
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            where, dtype=dtype or torch.float32, trust_remote_code=False, use_safetensors=True
        )
    except Exception as error:  # transformers raises OSError, ValueError, SafetensorError and more for bad checkpoints
        raise QtutorError(_explain(where, error)) from error
    finally:
        if shown:
            logging.enable_progress_bar()
    decoder_blocks(model)  # refuse a family that quantize() would refuse later
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(), tokenizer


def _explain(where, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if not Path(where).exists():
        return (
            f"{where}: no such folder here, and it could not be had as a hub id ({reason}). Check the spelling; "
            "without network, pass a folder with config.json, tokenizer.json and *.safetensors."
        )
    have = sorted(p.name for p in Path(where).iterdir()) if Path(where).is_dir() else ["a file, not a folder"]
    return (
        f"{where}: the checkpoint cannot be loaded ({reason}). Found {', '.join(have[:12])}; needed are config.json, "
        "tokenizer.json and whole *.safetensors files. Copy or download it again."
    )


@torch.no_grad()
def add_outliers(model: nn.Module, share: float = 0.05, largest: float = 32.0, seed: int = 0) -> nn.Module:
    """Give ``model`` the activation outliers of a large model, without changing the function it computes.

    An exact reparametrisation: some channels of every norm's gain, and rows of every ``up_proj``, are multiplied by
    a power of two up to ``largest``, and the matching columns of the layers that read them divided by it. Powers of
    two only touch exponents, so the float model's logits stay what they were, in bf16 too. Quantized weights do change:
    a few columns now matter far more than the rest, as in models of billions of parameters (Dettmers et al. 2022,
    arXiv 2208.07339, section 4). In place; returns the model.
    """
    generator = torch.Generator().manual_seed(seed)

    def factors(width: int) -> torch.Tensor:
        exponents = torch.randint(1, int(torch.tensor(largest).log2()) + 1, (width,), generator=generator)
        chosen = torch.rand(width, generator=generator) < share
        return torch.where(chosen, 2.0**exponents, torch.ones(width))

    for block in decoder_blocks(model):
        attention, mlp = block.self_attn, block.mlp
        _move(block.input_layernorm.weight, (attention.q_proj, attention.k_proj, attention.v_proj), factors)
        _move(block.post_attention_layernorm.weight, (mlp.gate_proj, mlp.up_proj), factors)
        _move(mlp.up_proj.weight, (mlp.down_proj,), factors)
    return model


def _move(source: torch.Tensor, readers: tuple[nn.Linear, ...], factors) -> None:
    """Multiply the channels (rows) of ``source`` and divide the columns of the layers that read them."""
    factor = factors(source.shape[0]).to(source.device, source.dtype)
    source.mul_(factor if source.dim() == 1 else factor[:, None])
    for layer in readers:
        layer.weight.div_(factor)
