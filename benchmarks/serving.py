"""Tokens a second of many requests: the engine, batches that wait for their longest text, and one text at a time.

    python benchmarks/serving.py [--rounds 3]

One process, one thread. All three take turns, serve the same requests with the same layers, and write the same number
of tokens: texts end where the request says. Prompts have 8 to 56 tokens, answers 48 on average, most are shorter and
some five times as long. A static server takes the requests in their order, eight at a time, padded on the left
(transformers' generate), and has to keep room for the longest text in each place. The engine gets the same number of
bytes for its cache and serves up to 32 at a time: a request is replaced by the next as soon as it is finished. Medians
over the rounds of processor time; wall time beside it. The exit status says whether all claims hold.
"""

import argparse
import copy
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import qtutor
from benchmarks.packed_matmul import processor
from qtutor.serving import Engine, cache_bytes
from qtutor.serving.cache import BLOCK

STATIC = 8, 16  # texts in a static batch; the engine's cache is as large as that of the last
AT_A_TIME = 32
PROMPT, ANSWER, LONGEST = (8, 56), 48, 256  # tokens: the shortest and the longest prompt; answers: mean, longest
CLAIMS = {"one at a time": 8.0, f"static, {STATIC[-1]} at a time": 3.0}  # so many times as many tokens a second
COMMON = 64  # tokens with which all prompts begin, where blocks are shared


@dataclass(frozen=True)
class Asked:
    """A request: a prompt, and how many tokens follow it."""

    prompt: list[int]
    new: int


def load(count: int, vocabulary: int, seed: int = 0) -> list[Asked]:
    """Requests of mixed lengths; those of answers are exponentially distributed, as a server's often are."""
    draw = random.Random(seed)
    lengths = [min(LONGEST, 1 + int(draw.expovariate(1 / ANSWER))) for _ in range(count)]
    return [Asked(draw.choices(range(vocabulary), k=draw.randint(*PROMPT)), new) for new in lengths]


def static(model, asked: list[Asked], size: int) -> dict:
    """Batch after batch, each until its longest text is finished. Returns the bytes of the largest batch's cache."""
    largest = 0
    for start in range(0, len(asked), size):
        batch = asked[start : start + size]
        longest = max(len(one.prompt) for one in batch)
        ids = torch.tensor([[0] * (longest - len(one.prompt)) + one.prompt for one in batch])
        mask = torch.tensor([[0] * (longest - len(one.prompt)) + [1] * len(one.prompt) for one in batch])
        new = max(one.new for one in batch)
        options = {"do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True}
        with torch.inference_mode():
            written = model.generate(ids, attention_mask=mask, max_new_tokens=new, **options)
        assert written.sequences.shape[1] == longest + new
        layers = written.past_key_values.layers
        largest = max(largest, sum(layer.keys.nbytes + layer.values.nbytes for layer in layers))
    return {"bytes": largest}


def blocks_of(texts: int) -> int:
    """Blocks that hold so many texts of the greatest length."""
    return texts * -(-(PROMPT[1] + LONGEST) // BLOCK)


def continuous(model, asked: list[Asked], blocks: int = blocks_of(STATIC[-1]), **options) -> dict:
    """The engine, with at most ``AT_A_TIME`` requests: bytes and most used blocks of its cache, steps, preemptions."""
    engine = Engine(model, blocks=blocks, **options)
    left, requests, steps, used = list(asked), [], 0, 0
    while left or engine.unfinished:
        while left and engine.unfinished < AT_A_TIME:
            one = left.pop(0)
            requests.append(engine.add(one.prompt, one.new))
        engine.step()
        steps, used = steps + 1, max(used, blocks - len(engine.blocks.free))
    assert [len(request.output) for request in requests] == [one.new for one in asked]
    predicted = cache_bytes(model.config, blocks * BLOCK, model.dtype)
    assert predicted == engine.pool.nbytes == engine.pool.keys.nbytes + engine.pool.values.nbytes
    preempted = sum(request.preemptions for request in requests)
    shared = sum(request.shared for request in requests)
    return {"bytes": predicted, "used": used, "steps": steps, "preempted": preempted, "shared": shared}


def measured(model, asked: list[Asked], rounds: int) -> bool:
    """Print a row for each server; whether the claims hold."""
    servers: dict[str, Callable[[], dict]] = {"one at a time": lambda: static(model, asked, 1)}
    for size in STATIC:
        servers[f"static, {size} at a time"] = lambda size=size: static(model, asked, size)
    servers["the engine"] = lambda: continuous(model, asked)
    continuous(model, asked[:AT_A_TIME])  # kernels are prepared and compiled
    static(model, asked[:1], 1)
    spent = {name: [] for name in servers}
    found = {}
    for _ in range(rounds):
        for name, serve in servers.items():
            start = time.process_time(), time.perf_counter()
            found[name] = serve()
            spent[name].append((time.process_time() - start[0], time.perf_counter() - start[1]))
    tokens = sum(one.new for one in asked)
    speed = {name: tokens / statistics.median(took for took, _ in times) for name, times in spent.items()}
    for name, times in spent.items():
        wall = tokens / statistics.median(took for _, took in times)
        ratios = "".join(f"{speed[name] / speed[other]:14.2f}" for other in CLAIMS)
        print(f"  {name:24}{speed[name]:10.0f}{wall:10.0f}{ratios}{found[name]['bytes'] / 1e6:12.2f}")
    engine = found["the engine"]
    print(
        f"  {len(asked)} requests, {tokens} tokens; the engine: {engine['steps']} steps of "
        f"{tokens / engine['steps']:.1f} tokens, {engine['preempted']} preempted, at most {engine['used']} of "
        f"{blocks_of(STATIC[-1])} blocks used; its cache has the predicted bytes"
    )
    held = True
    for other, claim in CLAIMS.items():
        ratio = speed["the engine"] / speed[other]
        held &= ratio >= claim
        print(f"  {'holds' if ratio >= claim else 'FAILS'}: {ratio:.2f} of {other}, claimed {claim:.2f}")
    return held


def sharing(model) -> bool:
    """Print what a common beginning saves; whether it is what arithmetic says: its blocks once, and not for each."""
    draw = random.Random(1)
    common = draw.choices(range(model.config.vocab_size), k=COMMON)
    asked = [Asked([*common, *one.prompt], 2) for one in load(AT_A_TIME, model.config.vocab_size, seed=1)]
    tokens = sum(len(one.prompt) for one in asked)
    blocks = sum(-(-(len(one.prompt) + 1) // BLOCK) for one in asked)
    options = {"blocks": blocks, "tokens_a_step": tokens}  # all in one step
    found = {share: continuous(model, asked, share_prefixes=share, **options) for share in (False, True)}
    print(f"{AT_A_TIME} prompts that begin with the same {COMMON} tokens:")
    for name, share in (("each for itself", False), ("shared", True)):
        print(f"  {name:24}{found[share]['used']:8} blocks{tokens - found[share]['shared']:8} tokens read")
    saved = found[False]["used"] - found[True]["used"], found[True]["shared"] - found[False]["shared"]
    expected = (AT_A_TIME - 1) * COMMON // BLOCK, (AT_A_TIME - 1) * COMMON
    held = saved == expected
    print(f"  {'holds' if held else 'FAILS'}: {saved[0]} blocks and {saved[1]} tokens saved, expected {expected}")
    return held


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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--embedded", action="store_true", help="leave out the larger decoder, which takes minutes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = {"the embedded decoder": qtutor.load_decoder(device="cpu")[0]}
    if not options.embedded:
        models["random"] = larger()
    print(f"{date.today()}; {processor()}, {os.cpu_count()} cores, 1 thread, torch {torch.__version__}")
    print(
        f"{'':26}{'tokens/s':>10}{'by wall':>10}"
        + "".join(f"{'x ' + name.removesuffix(' at a time'):>14}" for name in CLAIMS)
        + f"{'MB of cache':>12}"
    )
    held = True
    for name, model in models.items():
        model.generation_config.eos_token_id = None  # texts end where the request says
        packed = copy.deepcopy(model)
        qtutor.quantize(packed, qtutor.Recipe(bits=4, group_size=64), progress=False)
        weights = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        asked = load(options.requests, model.config.vocab_size)
        for kind, made in (("float32", model), ("packed 4 bits", packed)):
            print(f"{name}, {weights:.1f} million weights, {kind}:")
            held &= measured(made, asked, options.rounds)
    held &= sharing(models["the embedded decoder"])
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
