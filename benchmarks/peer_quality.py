"""Do qtutor's GPTQ and AWQ lose as little as those of llm-compressor and GPTQModel?

    python benchmarks/peers/setup.py              # once: an environment for each peer
    python benchmarks/peer_quality.py [--write]   # the peers' checkpoints are kept under ~/.cache/qtutor/peers
    python benchmarks/peer_quality.py --ours      # measures only qtutor again, against the peers' last losses

Every quantizer gets the same float32 checkpoint (two decoders, see peers/decoders.py), the same calibration tokens,
bits and group size, and zero points (asymmetric). It quantizes all layers but lm_head and embeddings. The weights that
the checkpoints stand for are loaded in float32, and KL(float || quantized) a token is measured on held-out text. A peer
runs with its defaults and with its options for better quality, and the least of these losses counts. qtutor runs with
its defaults, and for comparison without propagation, which the peers' AWQ and llm-compressor's GPTQ do not have.
``--write`` puts the table into peers/README.md. The exit status is 1 if qtutor's KL is above 1.02 times a peer's.
"""

import argparse
import ast
import copy
import hashlib
import itertools
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))

from decoders import folder_of, tokens_of
from launch import CACHE, PEERS, launch, python_of, script_of

import qtutor
from qtutor.decoder.corpus import held_out_code
from qtutor.families import decoder_blocks
from qtutor.files import written_beside

PAGE = Path(__file__).resolve().parent / "peers" / "README.md"
BEGIN, END = "<!-- peer_quality: begin -->\n", "<!-- peer_quality: end -->"
BOUND = 1.02
TOKENS = 24_576
DECODERS = ("embedded", "second")
METHODS = ("gptq", "awq")
CELLS = [(bits, group_size) for bits in (4, 3) for group_size in (64, 128)]
OURS = {"defaults": {}, "without propagation": {"propagate": False}}
# (method, peer): the peer's settings by name, the defaults first.
VARIANTS = {
    ("gptq", "llmcompressor"): {"defaults": {}, "observer mse": {"observer": "mse"}},
    ("gptq", "gptqmodel"): {
        "defaults": {},
        "desc_act": {"desc_act": True},
        "mse": {"mse": 2.4},
        "gptaq, mse": {"gptaq": {"alpha": 0.25}, "mse": 2.4},
    },
    ("awq", "llmcompressor"): {"defaults": {}, "duo both, observer mse": {"duo_scaling": "both", "observer": "mse"}},
    ("awq", "gptqmodel"): {"defaults": {}},
}


def variants(method: str, bits: int) -> list[tuple[str, str, dict]]:
    """The runs of the peers: (peer, name, settings). GPTQModel's AWQ has only 4 bits."""
    offered = [peer for peer in PEERS if (method, peer, bits) != ("awq", "gptqmodel", 3)]
    return [(peer, name, settings) for peer in offered for name, settings in VARIANTS[method, peer].items()]


class Remembered:
    """A float model that computes its logits once for every batch of text."""

    def __init__(self, model: torch.nn.Module):
        self.model, self.known = model, {}

    def __call__(self, ids: torch.Tensor, **more):
        key = ids.numpy().tobytes()
        if key not in self.known:
            self.known[key] = self.model(ids, **more)
        return self.known[key]


def digest(*parts) -> str:
    """A digest of paths (their bytes; of Python files the code without comments and layout) and of other values."""
    sha = hashlib.sha256()
    for part in parts:
        if not isinstance(part, Path):
            sha.update(repr(part).encode())
        elif part.suffix == ".py":
            sha.update(ast.dump(ast.Module(ast.parse(part.read_text()).body[1:], [])).encode())  # [0]: its docstring
        else:
            sha.update(part.read_bytes())
    return sha.hexdigest()[:16]


def peer_checkpoint(decoder: str, method: str, peer: str, bits: int, group_size: int, settings: dict) -> Path:
    """The folder with the dequantized weights of a peer's run. The peer runs only if there was no such run before."""
    checkpoint, tokens = folder_of(decoder), tokens_of(decoder, method)
    made_of = digest(checkpoint / "model.safetensors", tokens, script_of(peer), settings)
    name = f"{decoder}-{method}-{peer}-{bits}bit-g{group_size}-{made_of}"
    folder = CACHE / "quality" / name
    if not folder.exists():
        print(f"running {name} {settings}", file=sys.stderr, flush=True)
        out, beside = CACHE / "packed" / name, CACHE / "quality" / f"{name}.partial"
        launch(peer, checkpoint, tokens, out, method, bits, group_size, settings, dequantized=beside)
        shutil.rmtree(out)
        beside.rename(folder)
    return folder


def check_levels(model: torch.nn.Module, bits: int, group_size: int, what: str) -> None:
    """Raise unless every group of every layer has at most ``2 ** bits`` values: otherwise it has other bits."""
    for name, layer in decoder_blocks(model).named_modules():
        if isinstance(layer, torch.nn.Linear):
            ordered = layer.weight.detach().reshape(-1, group_size).sort(dim=1).values
            levels = 1 + (ordered.diff(dim=1) != 0).sum(dim=1).max().item()
            if not 1 < levels <= 2**bits:
                raise SystemExit(f"{what}: {name} has groups of {levels} different weights, {2**bits} at most may be.")


def kept_in(decoder: str) -> Path:
    """The file for the losses on a decoder; it is another file if the weights or the text change."""
    return CACHE / f"losses-{decoder}-{digest(folder_of(decoder) / 'model.safetensors', held_out_code(), TOKENS)}.json"


def losses_in(file: Path) -> dict[str, float]:
    return json.loads(file.read_text()) if file.exists() else {}


def measure_all(decoder: str, methods: tuple[str, ...], ours_only: bool) -> None:
    """Measure KL, and keep each result at once by "method|bits|group size|who|variant"."""
    model, tokenizer = qtutor.load_decoder(folder_of(decoder), device="cpu")
    ids = qtutor.evaluate.held_out_tokens(tokenizer, TOKENS)
    reference, file = Remembered(model), kept_in(decoder)

    def measure(quantized: torch.nn.Module, *key) -> None:
        kl = qtutor.evaluate.compare(quantized, reference, ids).kl
        with written_beside(file) as beside:
            beside.write_text(json.dumps(losses_in(file) | {"|".join(map(str, key)): kl}, indent=1))
        print(f"{key}: {kl:.6f}", file=sys.stderr, flush=True)

    for method, (bits, group_size) in itertools.product(methods, CELLS):
        for variant, settings in OURS.items():
            ours = copy.deepcopy(model)
            recipe = qtutor.Recipe(method, bits, group_size, **settings)
            qtutor.quantize(ours, recipe, load_file(tokens_of(decoder, method))["token_ids"], progress=False)
            measure(ours, method, bits, group_size, "qtutor", variant)
        if ours_only:
            continue
        for peer, variant, settings in variants(method, bits):
            folder = peer_checkpoint(decoder, method, peer, bits, group_size, settings)
            theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            if "desc_act" not in settings:  # otherwise a group's weights are not neighbours
                check_levels(theirs, bits, group_size, f"{peer} {method} {variant}")
            measure(theirs, method, bits, group_size, peer, variant)


def table() -> tuple[str, list[str]]:
    """The Markdown table of the kept losses, and the cells in which qtutor loses too much or a loss is not measured."""
    lines = ["| decoder | method | bits | group | qtutor | without propagation |", "|---|---|---:|---:|---:|---:|"]
    for name in PEERS.values():
        lines[0] += f" {name}: defaults | best | with | qtutor / best |"
        lines[1] += "---:|---:|---|---:|"
    missed = []
    for decoder, method, (bits, group_size) in itertools.product(DECODERS, METHODS, CELLS):
        found, cell = losses_in(kept_in(decoder)), f"{method}|{bits}|{group_size}"
        ours, without = (found.get(f"{cell}|qtutor|{variant}", math.nan) for variant in OURS)
        line = f"| {decoder} | {method.upper()} | {bits} | {group_size} | {ours:.4g} | {without:.4g} |"
        for peer, name in PEERS.items():
            names = [variant for who, variant, _ in variants(method, bits) if who == peer]
            if not names:
                line += " not offered | – | – | – |"
                continue
            theirs = {variant: found.get(f"{cell}|{peer}|{variant}", math.nan) for variant in names}
            best = min(theirs, key=lambda variant: (math.isnan(theirs[variant]), theirs[variant]))
            ratio = ours / theirs[best]
            line += f" {theirs['defaults']:.4g} | {theirs[best]:.4g} | {best} | {ratio:.3f} |"
            if math.isnan(sum(theirs.values()) + ours + without):
                missed.append(f"{decoder} {cell}: not all is measured of qtutor and {name}")
            if ratio > BOUND:
                missed.append(f"{decoder} {cell}: {ratio:.3f} times {name}'s, {best}")
        lines.append(line)
    return "\n".join(lines), missed


def versions() -> str:
    """The versions that were compared, as the environments report them."""
    wanted = ("llmcompressor", "compressed-tensors", "gptqmodel", "torch", "transformers")
    program = (
        "import importlib.metadata as m\nfound = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
        f"print(', '.join(f'{{n}} {{found[n]}}' for n in {wanted} if n in found))"
    )
    return "; ".join(subprocess.check_output([python_of(who), "-c", program], text=True).strip() for who in PEERS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decoder", choices=DECODERS, action="append", help="only this one (may be given twice)")
    parser.add_argument("--method", choices=METHODS, action="append", help="only this one")
    parser.add_argument("--ours", action="store_true", help="take the peers' losses from the last run with all")
    parser.add_argument("--kept", action="store_true", help="measure nothing, show what was measured")
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/peers/README.md")
    options = parser.parse_args()
    for decoder in () if options.kept else options.decoder or DECODERS:
        measure_all(decoder, options.method or METHODS, options.ours)
    text, missed = table()
    made = "Made by `python benchmarks/peer_quality.py --write`"
    text = f"{made}: KL in nats a token over {TOKENS:,} held-out tokens. {versions()}.\n\n{text}\n"
    print(text)
    if options.write:
        before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
        PAGE.write_text(before + BEGIN + text + END + rest.split(END)[1], encoding="utf-8")
    for cell in missed:
        print(f"MISSED  {cell}")
    if not missed:
        print(f"In every cell KL is at most {BOUND} times each peer's best.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
