"""Tokens a second of many requests: the engine, batches that wait for their longest text, and one text at a time.

    python benchmarks/serving.py [--turns 12] [--embedded]

Everything runs in one process, on one thread. The servers take turns of about a second, so that they meet the same load
of the machine. Each goes through the same endless queue of requests, with the same layers. Prompts have 8 to 32 tokens,
and answers 50 tokens on average; most answers are shorter, and a few have 256. A text ends after the number of tokens
that its request says. A static server accepts requests in order, 8 or 16 at a time, padded on the left (transformers'
generate). It returns a batch when the longest text of the batch is finished, and each place needs room for the longest
possible text. The engine's cache has as many bytes as that of the larger static server, and it serves 32 requests at a
time: when one is finished, the next one starts. Packed decoders also write one text at a time by quick steps
(qtutor.runtime.steps), as `qtutor generate` does. Figures are processor time, with wall time beside it. The exit status
says whether all claims hold.
"""

import argparse
import contextlib
import copy
import itertools
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import qtutor
from benchmarks.packed_matmul import processor
from qtutor.runtime.linear import QuantLinear
from qtutor.runtime.steps import quick_steps
from qtutor.serving import Engine, pool_bytes
from qtutor.serving.cache import BLOCK

STATIC = 8, 16  # texts in a static batch; the engine's cache is as large as that of the second
AT_A_TIME, REQUESTS, SECONDS = 32, 256, 1.0
PROMPT, ANSWER, LONGEST = (8, 32), 48, 256  # tokens: the shortest and the longest prompt; answers: mean, longest
QUICK = "one at a time, quick"
COMPARED = "one at a time", f"static, {STATIC[-1]} at a time"
# The engine's tokens a second, divided by those of the others. The embedded decoder's steps are mostly Python, so a
# step with one text is cheap, too. In a larger decoder with packed weights, the product is the limit from about 8
# tokens on, for the engine and for static batches. There the engine gains because its places are not empty, and no
# longer because weights are shared.
CLAIMS = {
    ("the embedded decoder", "float32"): (7.0, 3.0),
    ("the embedded decoder", "packed 4 bits"): (7.0, 3.0),
    ("a random decoder", "float32"): (8.0, 3.0),
    ("a random decoder", "packed 4 bits"): (3.0, 2.5),
}
COMMON = 64  # if blocks are shared, all prompts begin with this many common tokens


@dataclass(frozen=True)
class Asked:
    """A request: a prompt, and the number of tokens that follow it."""

    prompt: list[int]
    new: int


def load(count: int, vocabulary: int, seed: int = 0) -> list[Asked]:
    """Requests of mixed lengths; lengths of answers are exponentially distributed, as they often are on a server."""
    draw = random.Random(seed)
    lengths = [min(LONGEST, 1 + int(draw.expovariate(1 / ANSWER))) for _ in range(count)]
    return [Asked(draw.choices(range(vocabulary), k=draw.randint(*PROMPT)), new) for new in lengths]


def static(model, asked: list[Asked], size: int, seen: dict, steps=contextlib.nullcontext) -> Iterator[int]:
    """Serve batch after batch, each until its longest text is finished; yields how many requested tokens each wrote.

    seen: gets the bytes of the largest cache. steps: a context in which the tokens are generated.
    """
    for start in itertools.count(0, size):
        batch = [asked[number % len(asked)] for number in range(start, start + size)]
        longest, new = max(len(one.prompt) for one in batch), max(one.new for one in batch)
        ids = torch.tensor([[0] * (longest - len(one.prompt)) + one.prompt for one in batch])
        mask = torch.tensor([[0] * (longest - len(one.prompt)) + [1] * len(one.prompt) for one in batch])
        options = {"do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True}
        with torch.inference_mode(), steps(model):
            written = model.generate(ids, attention_mask=mask, max_new_tokens=new, **options)
        assert written.sequences.shape[1] == longest + new
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in written.past_key_values.layers)
        seen["bytes"] = max(held, seen.get("bytes", 0))
        yield sum(one.new for one in batch)


def continuous(engine: Engine, asked: list[Asked], seen: dict) -> Iterator[int]:
    """Serve ``AT_A_TIME`` requests, step after step; yields how many tokens each step wrote.

    seen: gets the bytes of the cache, the largest number of its blocks in use, and the number of steps.
    """
    left = itertools.cycle(asked)
    seen |= {"bytes": engine.pool.nbytes, "used": 0, "steps": 0}
    while True:
        while engine.unfinished < AT_A_TIME:
            one = next(left)
            engine.add(one.prompt, one.new)
        yield len(engine.step())
        seen["used"] = max(seen["used"], len(engine.blocks.users) - len(engine.blocks.free))
        seen["steps"] += 1


def take_turns(servers: dict[str, Iterator[int]], turns: int) -> dict[str, tuple[int, float, float]]:
    """For each server: tokens, seconds of processor time, and seconds of wall time."""
    taken = dict.fromkeys(servers, (0, 0.0, 0.0))
    for turn in range(turns + 1):
        for name, server in servers.items():
            tokens, begin = 0, (time.process_time(), time.perf_counter())
            while time.process_time() - begin[0] < SECONDS:
                tokens += next(server)
            new = tokens, time.process_time() - begin[0], time.perf_counter() - begin[1]
            if turn:  # kernels are prepared and compiled in the first turn
                taken[name] = tuple(map(sum, zip(taken[name], new, strict=True)))
    return taken


def measured(model, asked: list[Asked], turns: int, claims: tuple[float, ...]) -> bool:
    """Print a row for each server; returns whether the claims hold."""
    blocks = STATIC[-1] * -(-(PROMPT[1] + LONGEST) // BLOCK)
    engine = Engine(model, blocks=blocks)
    predicted = pool_bytes(model.config, blocks * BLOCK, model.dtype)
    assert predicted == engine.pool.nbytes == engine.pool.keys.nbytes + engine.pool.values.nbytes
    seen = {"one at a time": {}} | {f"static, {size} at a time": {} for size in STATIC} | {"the engine": {}}
    servers = {name: static(model, asked, size, seen[name]) for name, size in zip(seen, (1, *STATIC), strict=False)}
    if any(isinstance(layer, QuantLinear) for layer in model.modules()):
        seen[QUICK] = {}
        servers[QUICK] = static(model, asked, 1, seen[QUICK], quick_steps)
    servers["the engine"] = continuous(engine, asked, seen["the engine"])
    taken = take_turns(servers, turns)
    speed = {name: tokens / seconds for name, (tokens, seconds, _) in taken.items()}
    for name, (tokens, _, wall) in taken.items():
        ratios = "".join(f"{speed[name] / speed[other]:14.2f}" for other in COMPARED)
        print(f"  {name:24}{speed[name]:10.0f}{tokens / wall:10.0f}{ratios}{seen[name]['bytes'] / 1e6:12.2f}")
    print(f"  the engine used at most {seen['the engine']['used']} of {blocks} blocks; they have the predicted bytes")
    held = True
    for other, claim in zip(COMPARED, claims, strict=True):
        ratio = speed["the engine"] / speed[other]
        held &= ratio >= claim
        print(f"  {'holds' if ratio >= claim else 'FAILS'}: {ratio:.2f} of {other}, claimed {claim:.2f}", flush=True)
    return held


def sharing(model) -> bool:
    """Print what a common beginning saves; returns whether that is right: its blocks once, and not for each text."""
    common = random.Random(1).choices(range(model.config.vocab_size), k=COMMON)
    prompts = [[*common, *one.prompt] for one in load(AT_A_TIME, model.config.vocab_size, seed=1)]
    tokens = sum(map(len, prompts))
    found = {}
    print(f"{AT_A_TIME} prompts that begin with the same {COMMON} tokens:")
    for name, share in (("each for itself", False), ("shared", True)):
        engine = Engine(model, blocks=tokens, tokens_a_step=tokens, share_prefixes=share)
        requests = [engine.add(prompt, 2) for prompt in prompts]
        engine.step()  # reads all prompts
        used = len(engine.blocks.users) - len(engine.blocks.free)
        found[name] = used, tokens - sum(request.shared for request in requests)
        print(f"  {name:24}{used:8} blocks{found[name][1]:8} tokens read")
    saved = tuple(a - b for a, b in zip(*found.values(), strict=True))
    expected = (AT_A_TIME - 1) * COMMON // BLOCK, (AT_A_TIME - 1) * COMMON
    verdict = "holds" if saved == expected else "FAILS"
    print(f"  {verdict}: {saved[0]} blocks and {saved[1]} tokens saved, expected {expected[0]} and {expected[1]}")
    return saved == expected


def larger() -> LlamaForCausalLM:
    """A random decoder of 95 million weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=768,
        intermediate_size=2304,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        dtype=torch.float32,
    )
    return LlamaForCausalLM(config).eval()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--embedded", action="store_true", help="leave out the larger decoder, which takes minutes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = {"the embedded decoder": qtutor.load_decoder(device="cpu")[0]}
    if not options.embedded:
        models["a random decoder"] = larger()
    print(f"{date.today()}; {processor()}, {os.cpu_count()} cores, 1 thread, torch {torch.__version__}")
    print(
        f"{'':26}{'tokens/s':>10}{'by wall':>10}"
        + "".join(f"{'x ' + name.removesuffix(' at a time'):>14}" for name in COMPARED)
        + f"{'MB of cache':>12}"
    )
    held = True
    for name, model in models.items():
        model.generation_config.eos_token_id = None  # texts end after the requested number of tokens
        packed = copy.deepcopy(model)
        qtutor.quantize(packed, qtutor.Recipe(bits=4, group_size=64), progress=False)
        weights = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        asked = load(REQUESTS, model.config.vocab_size)
        for kind, made in (("float32", model), ("packed 4 bits", packed)):
            print(f"{name}, {weights:.1f} million weights, {kind}:")
            # A turn of the larger decoder takes a minute, because a static batch is always finished.
            turns = options.turns if weights < 10 else -(-options.turns // 4)
            held &= measured(made, asked, turns, CLAIMS[name, kind])
    held &= sharing(models["the embedded decoder"])
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
