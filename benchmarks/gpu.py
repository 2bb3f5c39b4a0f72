"""Packed layers on a GPU: are the results right, how fast is one product, and how many tokens a second has a decoder?

    python benchmarks/gpu.py [--minutes 8] [--parts right products tokens cuts]
    TRITON_INTERPRET=1 python benchmarks/gpu.py --small      on a CPU: tries the script; times mean nothing

The script needs torch, triton and transformers, and nothing else. Each part ends when its share of the minutes is
spent, and says what it left out. If a part fails, the script says so and continues with the next part. Products are
recorded in CUDA graphs, because a call from Python takes longer than a product; they go through so many matrices that
no cache holds them. Weights are random: speed does not depend on values. "of copying" is the share of the bandwidth at
which this GPU copies memory; bytes read and bytes written both count. "cuts" tries ways to cut the work that are not
those of qtutor.runtime.kernels.cuda.LAUNCHES, which nobody has measured yet. The exit status says whether nothing
failed, all results were right, and all claims hold.
"""

import argparse
import itertools
import math
import random
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.nn.functional import linear

from qtutor.core.codebooks import FP4, INT8, NF4
from qtutor.core.grid import IntGrid
from qtutor.runtime.kernels import cuda
from qtutor.runtime.linear import QuantLinear

GRIDS = {f"{bits} bits": IntGrid(bits) for bits in (2, 3, 4, 8)} | {"nf4": NF4}
OTHERS = {f"{bits} bits symmetric": IntGrid(bits, symmetric=True) for bits in (2, 3, 4, 8)} | {"fp4": FP4, "int8": INT8}
SHAPES = (4096, 14336), (8192, 28672)
BATCHES = 1, 2, 4, 8, 16
GROUP = 64
CYCLED = 256e6  # bytes of matrices that a product goes through; caches of GPUs hold 50 MB
CLAIMS = 2.5, 0.6  # for 4 bits at one token: how many times as fast as bfloat16, and the share of copying
PARTS = {"right": 0.45, "products": 0.27, "tokens": 0.16, "cuts": 0.12}  # with their shares of the time
IN_GRAPH = 32  # calls, or more: then the cost of starting a graph hardly counts


def layer_of(grid, rows: int, columns: int, group: int, device: str) -> QuantLinear:
    """A packed layer of random bytes."""
    with torch.device(device):
        layer = QuantLinear(rows, columns, grid, group)
        layer.packed = torch.randint(0, 256, layer.packed.shape, dtype=torch.uint8)
        layer.scales = (0.5 + torch.rand(layer.scales.shape)).to(layer.scales.dtype) / 100
        if layer.zeros is not None:
            layer.zeros = torch.randint(0, 256, layer.zeros.shape, dtype=torch.uint8)
    return layer


def within(seconds: float, things: Iterable) -> Iterator:
    """Yield the first of ``things``, and others until the time is spent; print how many are left out."""
    things, end = list(things), time.monotonic() + seconds
    for done, thing in enumerate(things):
        if done and time.monotonic() > end:
            print(f"the time is spent: {len(things) - done} of {len(things)} left out")
            return
        yield thing


def said(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(calls: list[Callable[[], object]], device: str, repeats: int = 7) -> float:
    """Seconds of one of ``calls``, which do the same with different matrices; the median of several rounds."""
    for call in calls:  # compiles and prepares the kernels
        call()
    wait(device)
    if device == "cpu":
        start = time.perf_counter()
        calls[0]()
        return time.perf_counter() - start
    graph, taken, rounds = torch.cuda.CUDAGraph(), [], -(-IN_GRAPH // len(calls))
    with torch.cuda.graph(graph):
        for call in calls * rounds:
            call()
    graph.replay()
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        wait(device)
        taken.append(start.elapsed_time(end) / 1e3 / (rounds * len(calls)))
    return statistics.median(taken)


def copy_bandwidth(device: str) -> float:
    """Bytes a second, read and written, at which the device copies memory."""
    size = 2**30 if device == "cuda" else 2**20
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size / seconds_of([lambda: target.copy_(source)] * 4, device)


def off(layer: QuantLinear, x: torch.Tensor) -> float:
    """The kernel's error, in units of the error that float32 sums and rounding to x's dtype explain.

    For the exact product, the package unpacks the groups, and torch multiplies them in float64.
    """
    quantized = layer.quantized()
    exact = x.double() @ quantized.dequantize().double().T
    scales = quantized.scales.double().abs().expand(layer.rows, -1)
    size = scales.repeat_interleave(layer.columns // scales.shape[1], dim=1) * quantized.codes.max()
    # Half a step of the dtype; Triton's interpreter cuts off bfloat16, but a GPU rounds.
    rounding = {torch.float32: 0, torch.float16: 2**-11, torch.bfloat16: 2**-8 if x.is_cuda else 2**-7}[x.dtype]
    allowed = 4e-6 * (x.double().abs() @ size.T) + rounding * exact.abs() + 1e-30
    y = cuda.run(x, cuda.prepare(layer))
    again = cuda.run(x, cuda.prepare(layer))
    different = (y.double() - exact).abs() / allowed
    return math.inf if not torch.equal(y, again) or different.isnan().any() else float(different.max())


def right(device: str, small: bool, seconds: float) -> bool:
    """Compare every kind of grid, group and batch with the exact product; returns whether all were near enough."""
    rows, columns = (70, 256) if small else (520, 3072)  # no tile divides the rows
    groups = (8, 64, -1) if small else (8, 16, 32, 64, 128, 192, -1, 0)
    half = torch.bfloat16
    cases = list(itertools.product(GRIDS, groups, (1, 3, 16) if small else (1, 2, 3, 4, 7, 8, 16), [half]))
    cases += itertools.product(OTHERS, [64], (1, 5), [half])
    cases += itertools.product(("4 bits", "3 bits", "nf4"), [64], (1, 5), [torch.float32, torch.float16])
    random.Random(0).shuffle(cases)  # if time runs out, cases of every kind have been tried
    worst, wrong, done = 0.0, [], 0
    for name, group, batch, dtype in within(seconds, cases):
        layer, kind = layer_of((GRIDS | OTHERS)[name], rows, columns, group, device), f"{name}, groups of {group}"
        done += 1
        try:
            found = off(layer, torch.randn(batch, columns, device=device).to(dtype))
        except Exception as error:  # any error of Triton or the GPU; other kinds may work
            wrong.append(f"{kind}, {batch} tokens of {dtype}: {said(error)}")
            continue
        worst = max(worst, found)
        if found > 1:
            wrong.append(f"{kind}, {batch} tokens of {dtype}: off by {found:.3g} of what is allowed")
    print("\n".join(wrong[:20]))
    print(
        f"right: {done - len(wrong)} of {done} kinds, the same twice; at most {worst:.2f} of the error that is allowed"
    )
    return not wrong


def kinds_of(rows: int, columns: int, batch: int, device: str) -> Iterator[tuple[str, int, Callable, Callable]]:
    """All kinds that are compared: name, bytes of a matrix, a function that makes it, and one that multiplies."""
    x = torch.randn(batch, columns, device=device).bfloat16()
    for name, grid in GRIDS.items():

        def make(grid=grid):
            return cuda.prepare(layer_of(grid, rows, columns, GROUP, device))

        probe = QuantLinear(1, columns, grid, GROUP)
        yield name, rows * probe.nbytes, make, lambda state: cuda.run(x, state)
    if device == "cuda":

        def int4():
            codes = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, device=device)
            scales = torch.rand(columns // GROUP, rows, 2, device=device).bfloat16()
            return torch._convert_weight_to_int4pack(codes, 8), scales

        size = rows * columns // 2 + 4 * rows * columns // GROUP
        yield "torch int4", size, int4, lambda m: torch._weight_int4pack_mm(x, m[0], GROUP, m[1])
    yield (
        "bfloat16",
        2 * rows * columns,
        lambda: torch.randn(rows, columns, device=device, dtype=torch.bfloat16),
        lambda m: linear(x, m),
    )


def products(device: str, small: bool, seconds: float) -> bool:
    """Print the speed of one product, as a table for each shape and batch; returns whether the claims hold."""
    copy = copy_bandwidth(device)
    print(f"copying {copy / 1e9:.0f} GB/s")
    shapes, batches = (((128, 256),), (1, 3)) if small else (SHAPES, BATCHES)
    held = True
    for (rows, columns), batch in within(seconds, itertools.product(shapes, batches)):
        took, sizes = {}, {}
        for name, size, make, multiply in kinds_of(rows, columns, batch, device):
            try:
                matrices = [make() for _ in range(1 if small else max(2, math.ceil(CYCLED / size)))]
                calls = [lambda m=matrix, f=multiply: f(m) for matrix in matrices]
                took[name], sizes[name] = seconds_of(calls, device), size
            except Exception as error:  # torch's int4 is not on every GPU
                print(f"{name} is left out: {said(error)}")
                held &= name == "torch int4"
        print(f"\n{rows} x {columns}, groups of {GROUP}, {batch} token{'s' * (batch > 1)} of bfloat16")
        print(f"{'':12}{'us':>9}{'x bfloat16':>12}{'GB/s':>8}{'of copying':>12}")
        for name, time_of in took.items():
            rate = sizes[name] / time_of
            print(
                f"{name:12}{1e6 * time_of:9.1f}{took['bfloat16'] / time_of:12.2f}{rate / 1e9:8.0f}{rate / copy:12.0%}"
            )
        if batch == 1 and device == "cuda" and "4 bits" in took:
            ratio, part = took["bfloat16"] / took["4 bits"], sizes["4 bits"] / took["4 bits"] / copy
            fits = ratio >= CLAIMS[0] and part >= CLAIMS[1]
            held &= fits
            print(
                f"{'holds' if fits else 'FAILS'}: 4 bits {ratio:.2f} of bfloat16, claimed {CLAIMS[0]}; {part:.0%} of "
                f"copying, claimed {CLAIMS[1]:.0%}"
            )
    return held


def cuts(device: str, small: bool, seconds: float) -> bool:
    """Other ways to cut the work, the five fastest for one token and for eight, with groups of 64 and of 128."""
    rows, columns = (128, 256) if small else SHAPES[0]
    tried = itertools.product((64, 32, 128), (16, 8), (4, 2), (3, 1), (4, 8))
    launches = [cuda.Launch(*numbers) for numbers in tried][: 2 if small else None]
    for (batch, group), share in zip(((1, 64), (1, 128), (8, 64)), (0.4, 0.3, 0.3)):
        layers = [layer_of(GRIDS["4 bits"], rows, columns, group, device) for _ in range(1 if small else 8)]
        states, x = [cuda.prepare(layer) for layer in layers], torch.randn(batch, columns, device=device).bfloat16()
        took = {}
        for launch in within(share * seconds, [cuda.LAUNCHES[batch], *launches]):
            calls = [lambda x=x, s=state, how=launch: cuda.run(x, s, how) for state in states]
            try:
                took[launch] = seconds_of(calls, device, repeats=3)
            except Exception as error:  # it needs more registers or shared memory than the GPU has
                print(f"{launch} fails: {said(error)}")
        print(f"\n4 bits, {rows} x {columns}, groups of {group}, {batch} token(s): the fastest of {len(took)} cuts")
        for launch in sorted(took, key=took.get)[:5]:
            print(f"{1e6 * took[launch]:9.1f} us  {launch}")
        if cuda.LAUNCHES[batch] in took:
            print(f"{1e6 * took[cuda.LAUNCHES[batch]]:9.1f} us  is what LAUNCHES takes")
    return True


def decoder(small: bool, device: str):
    """A Llama with TinyLlama's shapes, 1.1B, bfloat16, and random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "vocab_size": 32000}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 4}
    if small:
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "vocab_size": 100}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    with torch.device(device):
        return LlamaForCausalLM(LlamaConfig(**sizes, **heads, dtype=torch.bfloat16)).to(torch.bfloat16).eval()


def pack(model, grid, device: str) -> None:
    """Replace the layers of the blocks by packed layers of random bytes; embedding and head stay bfloat16."""
    for block in model.model.layers:
        for half in (block.self_attn, block.mlp):
            for name, child in list(half.named_children()):
                if isinstance(child, torch.nn.Linear):
                    setattr(half, name, layer_of(grid, child.out_features, child.in_features, GROUP, device))


@torch.no_grad()
def token_seconds(model, device: str, steps: int) -> tuple[float, str]:
    """Seconds of one token after 32 others, and how they were measured: a step as a CUDA graph, or from Python."""
    from transformers import StaticCache

    cache = StaticCache(config=model.config, max_cache_len=256)
    token = torch.zeros(1, 1, dtype=torch.int64, device=device)
    model(torch.zeros(1, 32, dtype=torch.int64, device=device), past_key_values=cache, use_cache=True)

    def step() -> None:
        token.copy_(model(token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1))

    how, go = "from Python", step
    if device == "cuda":
        try:
            wait(device)  # another stream does not wait for the prompt without this
            with torch.cuda.stream(torch.cuda.Stream()):
                step()
            wait(device)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            how, go = "as a CUDA graph", graph.replay
        except RuntimeError as error:
            how = f"from Python, because a graph failed: {said(error)}"
    taken = []
    for _ in range(4):
        for layer in cache.layers:  # back to the end of the prompt
            layer.cumulative_length.fill_(32)
        wait(device)
        start = time.perf_counter()
        for _ in range(steps):
            go()
        wait(device)
        taken.append((time.perf_counter() - start) / steps)
    return statistics.median(taken[1:]), how


def tokens(device: str, small: bool, seconds: float) -> bool:
    """Tokens a second of a decoder of 1.1B, in bfloat16 and packed."""
    kinds = {"bfloat16": None} | {name: GRIDS[name] for name in ("4 bits", "8 bits", "3 bits", "2 bits", "nf4")}
    first = None
    for name, grid in within(seconds, kinds.items()):
        model = decoder(small, device)
        if grid is not None:
            pack(model, grid, device)
        took, how = token_seconds(model, device, 2 if small else 100)
        first = first or took
        print(f"{name:10}{1 / took:9.1f} tokens/s{first / took:8.2f} of bfloat16, {how}")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--small", action="store_true", help="small sizes, and a CPU where there is no GPU")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.small:
        print("there is no GPU here; TRITON_INTERPRET=1 and --small try the script on a CPU", file=sys.stderr)
        return 2
    import triton

    sys.stdout.reconfigure(line_buffering=True)  # printed lines are not lost if somebody stops the script
    name = torch.cuda.get_device_name() if device == "cuda" else "a CPU, Triton's interpreter: times mean nothing"
    print(f"{date.today()}, {name}, torch {torch.__version__}, triton {triton.__version__}", flush=True)
    begin, held = time.monotonic(), True
    whole = sum(PARTS[part] for part in options.parts)
    torch.manual_seed(0)
    for part in options.parts:
        print(f"\n== {part}", flush=True)
        # Time that earlier parts did not need goes to later parts.
        left = 60 * options.minutes - (time.monotonic() - begin)
        try:
            held &= globals()[part](device, options.small, left * PARTS[part] / whole)
        except Exception:  # the other parts may still work
            traceback.print_exc(file=sys.stdout)
            held = False
        whole -= PARTS[part]
        print(f"({time.monotonic() - begin:.0f} s)", flush=True)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
