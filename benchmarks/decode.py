"""Tokens a second of a whole decoder: float32, bfloat16, packed 4 bits with qtutor's kernels, and llama.cpp's Q4_0.

    pip install 'qtutor[gguf]' xllamacpp && python benchmarks/decode.py [--source smollm2] [--rounds 8]

One text, one token after the other, in one process, on one thread. By default the decoder is a Llama with the shapes of
TinyLlama's blocks (hidden 2048, intermediate 5632, 4 of its 22 blocks) and random weights: speed does not depend on
values. ``--source`` names any other decoder, such as smollm2. llama.cpp runs our own Q4_0 export of the same weights,
whose output matrix has 8 bits. Our output matrix is in float by default, so one more row has it in 8 bits, and this row
is compared with llama.cpp. The float models run as transformers runs them; packed models use the quick steps of
qtutor.runtime.steps. All models take turns. Times are processor time, medians over the rounds; a round is eight tokens
after 32 others. Bytes a token are the weights that a token reads. The exit status says whether all claims hold. With
``--source``, the cost in KL is printed as well.
"""

import argparse
import copy
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import qtutor
from benchmarks.packed_matmul import judged, processor
from qtutor import runtime
from qtutor.calibration.builtin import builtin_held_out
from qtutor.course.ladder.matrices import tinyllama
from qtutor.measure.speed import bytes_of_a_token, copy_bandwidth, token_times
from qtutor.runtime.linear import QuantLinear

PROMPT, STEPS = 32, 8
CLAIMS = [
    ("packed 4 bits", "float32", 2.5),
    ("packed 4 bits", "bfloat16", 2.0),
    ("4 bits, head of 8", "llama.cpp Q4_0", 0.9),
]
PACKED = qtutor.Recipe(bits=4, group_size=64)
# llama.cpp's Q4_0 mix has Q8_0 for this matrix: 8 bits in groups of 32.
WITH_HEAD = replace(PACKED, lm_head=True, layers={"lm_head": {"bits": 8, "group_size": 32}})
TEXT = 256, 8  # tokens of a sample, and number of samples, for the measurement of KL
MEMORY = 1.15  # the bound for packed layers with everything that their kernels prepared, in units of their packed bytes


def of_transformers(model) -> Callable[[], float]:
    """A function that reads a prompt, writes a few tokens and returns the seconds of one of them."""
    ids = torch.zeros(1, PROMPT, dtype=torch.int64)
    return lambda: statistics.median(token_times(model, ids, STEPS, time.process_time)[1])


def of_llama_cpp(path: Path) -> Callable[[], float]:
    """The same for llama.cpp."""
    from tests.gguf.llama_cpp import Model

    model = Model(path)

    def write() -> float:
        model.forget()
        token, seconds = int(model.logits([0] * PROMPT)[-1].argmax()), []
        for _ in range(STEPS):
            start = time.process_time()
            token = int(model.logits([token])[-1].argmax())
            seconds.append(time.process_time() - start)
        return statistics.median(seconds)

    return write


def memory_ratio(model) -> float:
    """The bytes that packed layers hold, with everything that was prepared, divided by their packed bytes."""
    layers = [layer for layer in model.modules() if isinstance(layer, QuantLinear)]
    held = 0
    for layer in layers:
        state = layer._prepared[-1]
        planes = state.planes if isinstance(state.planes, tuple) else (state.planes,)
        held += sum(a.nbytes for a in (*planes, state.scales, state.zeros)) + sum(b.nbytes for b in layer.held())
    return held / sum(layer.nbytes for layer in layers)


def packed_models(model) -> dict[str, torch.nn.Module]:
    """The packed rows of the table."""
    wanted = {
        "packed 4 bits": (PACKED, torch.float32),
        "packed 4 bits, bfloat16": (PACKED, torch.bfloat16),
        "4 bits, head of 8": (WITH_HEAD, torch.float32),
        "4 bits, head of 8, bf16": (WITH_HEAD, torch.bfloat16),
        "4 bits, head of 8, int8 x": (WITH_HEAD, torch.float32),
    }
    models = {}
    for name, (recipe, dtype) in wanted.items():
        models[name] = copy.deepcopy(model).to(dtype)
        qtutor.quantize(models[name], recipe, progress=False)
    runtime.use(models["4 bits, head of 8, int8 x"], activations="int8")
    return models


def print_costs(models: dict, tokenizer) -> None:
    """Print the KL divergence of the packed models from the float model."""
    text = builtin_held_out(tokenizer, *TEXT)
    print(f"KL divergence from float32 on {text.told}:")
    for name, model in models.items():
        if "4 bits" in name and "bf" not in name:
            found = qtutor.evaluate.compare(model, models["float32"], text.token_ids)
            print(f"{name:26}{found.kl:.4f} +- {found.kl_error:.4f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", help="a decoder instead of TinyLlama's shapes")
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    _, tokenizer = qtutor.load_decoder(device="cpu")
    model = tinyllama(blocks=4, vocabulary=len(tokenizer))
    if options.source:
        model, tokenizer = qtutor.load(options.source)
        model = model.float()
    models = {"float32": model, "bfloat16": copy.deepcopy(model).bfloat16()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "q4_0.gguf"
        qtutor.export(model, path, format="gguf", type="Q4_0", tokenizer=tokenizer)
        models |= packed_models(model)
        writers = {name: of_transformers(made) for name, made in models.items()}
        read = {name: bytes_of_a_token(made) for name, made in models.items()}
        try:
            writers["llama.cpp Q4_0"], read["llama.cpp Q4_0"] = of_llama_cpp(path), path.stat().st_size
        except ImportError:
            print("llama.cpp is left out: pip install xllamacpp")
        seconds: dict[str, list[float]] = {name: [] for name in writers}
        for i in range(options.rounds + 1):
            for name, write in writers.items():
                took = write()
                if i:  # kernels are prepared and compiled in the first round
                    seconds[name].append(took)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    bandwidth = copy_bandwidth(time.process_time)
    print(
        f"{date.today()}, {options.source or 'TinyLlama, 4 blocks'}; {processor()}, {os.cpu_count()} cores, 1 thread, "
        f"processor time, torch {torch.__version__}; copying {bandwidth / 1e9:.1f} GB/s"
    )
    print(
        f"{'':26}{'ms a token':>11}{'tokens/s':>10}{'x float32':>11}{'x bfloat16':>11}{'MB a token':>11}"
        f"{'of copying':>12}"
    )
    for name, took in medians.items():
        print(
            f"{name:26}{1e3 * took:11.1f}{1 / took:10.1f}{medians['float32'] / took:11.2f}"
            f"{medians['bfloat16'] / took:11.2f}{read[name] / 1e6:11.1f}{read[name] / took / bandwidth:12.0%}"
        )
    if options.source:
        print_costs(models, tokenizer)
    held = judged("tokens/s", [claim for claim in CLAIMS if claim[1] in medians], medians)
    ratio = memory_ratio(models["packed 4 bits"])
    print(f"{'holds' if ratio <= MEMORY else 'FAILS'}: packed layers take {ratio:.3f} of their bytes, claimed {MEMORY}")
    return 0 if held and ratio <= MEMORY else 1


if __name__ == "__main__":
    sys.exit(main())
