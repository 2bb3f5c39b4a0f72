"""How fast are products of packed weights and a few tokens? qtutor's kernels against torch's float and int4 products.

    python benchmarks/packed_matmul.py [--shapes 4096x4096 ...] [--rounds 15]

Times are medians of processor time, in one process, on one thread. All products take turns, so that they meet the same
load. Each product goes through several matrices, so that weights come from memory and not from a cache. The reference
runs only twice, because it is slow. Weights are random: speed does not depend on values. "of copying" is the share of
the bandwidth with which this machine copies memory; bytes read and bytes written both count. "int8 x" rounds inputs;
the loss from this is measured at the end on the embedded decoder. ``--wall`` gives wall time on torch's number of
threads instead. The last lines say which claims hold, and the exit status says whether all do.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.nn.functional import linear

import qtutor
from qtutor import bnb
from qtutor.core.quantized import QuantizedTensor
from qtutor.course.ladder.matrices import GROUP, random_layer
from qtutor.course.ladder.rungs import with_int8_inputs
from qtutor.decoder.text import held_out_tokens
from qtutor.measure.speed import copy_bandwidth
from qtutor.runtime.kernels import cpu, reference
from qtutor.runtime.linear import QuantLinear

SHAPES = "11008x4096", "4096x4096", "2048x2048"
CYCLED = 100e6  # bytes of matrices that a product goes through
# (product, peer, the product is at least this many times as fast); all at one token.
CLAIMS = [
    ("4 bits", "float32", 2.5),
    ("4 bits", "bfloat16", 2.0),
    ("4 bits", "torch int4", 0.75),
    ("2 bits", "4 bits", 1.0),
    ("3 bits", "4 bits", 0.8),
    ("8 bits", "float32", 2.0),
    ("nf4", "float32", 1.0),
    ("4 bits, int8 x", "torch int4", 1.05),
    ("4 bits, int8 x", "bfloat16", 3.0),
]
BATCH_CLAIM = ("4 bits", "float32", 3.0)  # at four tokens
CLAIMED = "11008x4096", "4096x4096"


class Product:
    """Several matrices of one kind, multiplied in turn."""

    def __init__(self, make: Callable[[], object], multiply: Callable, nbytes: int):
        self.matrices = [make() for _ in range(max(2, min(8, int(CYCLED // nbytes))))]
        self.multiply, self.nbytes, self.times, self.runs = multiply, nbytes, [], 0

    def run(self, clock: Callable[[], float]) -> None:
        matrix = self.matrices[self.runs % len(self.matrices)]
        self.runs += 1
        start = clock()
        self.multiply(matrix)
        self.times.append(clock() - start)

    def seconds(self, first: int) -> float:
        """The median time without the ``first`` runs, in which kernels are prepared and compiled."""
        return statistics.median(self.times[first:])


def nf4_of(rows: int, columns: int) -> QuantLinear:
    codes = torch.randint(0, 16, (rows, columns), dtype=torch.uint8)
    scales = torch.rand(rows, columns // GROUP) / 100
    return QuantLinear.from_quantized(QuantizedTensor(codes, scales, None, bnb.NF4, GROUP))


def torch_int4(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The packed matrix for torch's operator, and its scales and zero points, bfloat16 ``[groups, rows, 2]``."""
    codes = torch.randint(0, 16, (rows, columns), dtype=torch.int32)
    return torch._convert_weight_to_int4pack_for_cpu(codes, 1), torch.rand(columns // GROUP, rows, 2).bfloat16()


def products(rows: int, columns: int, tokens: int) -> dict[str, Product]:
    """All products that are compared, by name."""
    x = torch.randn(tokens, columns)
    half, weights = x.bfloat16(), rows * columns
    made = {
        f"{bits} bits": Product(
            lambda bits=bits: random_layer(rows, columns, bits), lambda m: m(x), weights * bits // 8
        )
        for bits in (2, 3, 4, 8)
    }
    made["nf4"] = Product(lambda: nf4_of(rows, columns), lambda m: m(x), weights // 2)
    made["4 bits, int8 x"] = Product(
        lambda: with_int8_inputs(random_layer(rows, columns, 4)), lambda m: m(x), weights // 2
    )
    made["4 bits, bf16 x"] = Product(lambda: random_layer(rows, columns, 4), lambda m: m(half), weights // 2)
    made["torch int4"] = Product(
        lambda: torch_int4(rows, columns),
        lambda m: torch._weight_int4pack_mm_for_cpu(half, m[0], GROUP, m[1]),
        weights // 2,
    )
    made["bfloat16"] = Product(lambda: torch.randn(rows, columns).bfloat16(), lambda m: linear(half, m), 2 * weights)
    made["float32"] = Product(lambda: torch.randn(rows, columns), lambda m: linear(x, m), 4 * weights)
    return made


def race(rows: int, columns: int, tokens: int, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Measure the seconds of each product, and print them as a table."""
    made = products(rows, columns, tokens)
    for i in range(rounds):
        for product in made.values():
            for _ in range(len(product.matrices) if not i else 1):  # first all matrices, to prepare them
                product.run(clock)
    seconds = {name: product.seconds(len(product.matrices)) for name, product in made.items()}
    layer, x = random_layer(rows, columns, 4), torch.randn(tokens, columns)
    state, slow = reference.prepare(layer), []
    for _ in range(2):
        start = clock()
        reference.run(x, state)
        slow.append(clock() - start)
    seconds["4 bits, reference"] = min(slow)
    copy = copy_bandwidth(clock)
    print(f"\n{rows} x {columns}, {tokens} token{'s' * (tokens > 1)}; copying {copy / 1e9:.1f} GB/s")
    print(f"{'':18}{'ms':>8}{'x float32':>11}{'x bfloat16':>11}{'x int4':>9}{'GB/s':>8}{'of copying':>12}")
    for name, took in seconds.items():
        rate = made[name].nbytes / took if name in made else layer.packed.nbytes / took
        ratios = [seconds[peer] / took for peer in ("float32", "bfloat16", "torch int4")]
        print(
            f"{name:18}{1e3 * took:8.2f}{ratios[0]:11.2f}{ratios[1]:11.2f}{ratios[2]:9.2f}{rate / 1e9:8.2f}"
            f"{rate / copy:12.0%}"
        )
    return seconds


def judged(where: str, claims: list[tuple[str, str, float]], seconds: dict[str, float]) -> bool:
    """Print whether each claim holds; returns whether all do."""
    held = True
    for name, peer, least in claims:
        ratio = seconds[peer] / seconds[name]
        held &= ratio >= least
        print(f"{'holds' if ratio >= least else 'FAILS'}: {where}: {name} {ratio:.2f} of {peer}, claimed {least:.2f}")
    return held


def processor() -> str:
    """The processor's model if Linux says it, otherwise its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def cost_of_int8() -> str:
    """The loss from int8 inputs in the embedded decoder at 4 bits, in words."""
    model, tokenizer = qtutor.load_decoder(device="cpu")
    tokens, packed = held_out_tokens(tokenizer)[:2048], qtutor.load_decoder(device="cpu")[0]
    qtutor.quantize(packed, qtutor.Recipe(bits=4, group_size=GROUP), progress=False)
    rounding = qtutor.evaluate.compare(packed, model, tokens).kl
    inputs = qtutor.evaluate.cost_of_int8_inputs(packed, tokens).kl
    return f"embedded decoder, {len(tokens)} tokens: KL of 4 bits {rounding:.4f} nats, int8 inputs {inputs:.5f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="ROWSxCOLUMNS")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--wall", action="store_true", help="wall time, on torch's number of threads")
    options = parser.parse_args()
    clock = time.perf_counter if options.wall else time.process_time
    if not options.wall:
        torch.set_num_threads(1)
    print(
        f"{date.today()}, {processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s), "
        f"{'wall' if options.wall else 'processor'} time, torch {torch.__version__}, kernel: {cpu.__name__}"
    )
    held = True
    with torch.no_grad():
        for shape in options.shapes:
            rows, columns = map(int, shape.split("x"))
            for tokens in options.tokens:
                seconds = race(rows, columns, tokens, options.rounds, clock)
                if shape in CLAIMED and not options.wall:
                    claims = CLAIMS if tokens == 1 else [BATCH_CLAIM] if tokens == 4 else []
                    held &= judged(f"{shape}, {tokens} tokens", claims, seconds)
    print(f"\n{cost_of_int8()}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
