"""qtutor's side of the comparison, started and measured like the peers': load, quantize, export.

Method ``gguf`` writes a file for llama.cpp instead: ``--set '{"type": "Q4_K_M", "importance": true}'``. With ``"own":
true`` the file has the same size, but each matrix has the type that :mod:`qtutor.budget.block_types` chooses.
"""

import argparse
import json

import torch
from safetensors.torch import load_file

import qtutor
from qtutor.budget import block_types
from qtutor.formats.gguf import planned
from qtutor.gguf import imatrix


def to_gguf(
    model, tokenizer, tokens: torch.Tensor, out: str, type: str, importance: bool = False, own: bool = False
) -> None:
    """Write the file ``out/model.gguf``. importance: measured on the calibration tokens, as llama-imatrix does."""
    measured, types = imatrix.importance(model, tokens) if importance else None, None
    if own:
        size = sum(planned(model, tokenizer, type=type).values())
        types = block_types.choose(model, tokens, tokenizer, target_size=size, importance=measured)
    qtutor.export(model, out, format="gguf", type=type, types=types, tokenizer=tokenizer, importance=measured)


def main(**recipe) -> None:
    """recipe: arguments of the recipe in addition to those of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("tokens")
    parser.add_argument("out")
    parser.add_argument("--method", choices=["rtn", "gptq", "awq", "awq+gptq", "gguf"], required=True)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--set", default="{}", help="more of the recipe, as JSON")
    options = parser.parse_args()
    more, tokens = json.loads(options.set), load_file(options.tokens)["token_ids"]
    model, tokenizer = qtutor.load_decoder(options.checkpoint, device="cpu")
    if options.method == "gguf":
        to_gguf(model, tokenizer, tokens, options.out, **more)
        return
    qtutor.quantize(model, qtutor.Recipe(options.method, options.bits, options.group_size, **recipe, **more), tokens)
    qtutor.export(model, options.out, tokenizer=tokenizer)


if __name__ == "__main__":
    main()
