"""Tokens a second of vLLM on this CPU, for 1, 8 and 32 requests at once, with weights of 16 bits and of 4 bits.

    make engines      # once: makes the environment that has vLLM
    build/vllm-venv/bin/python benchmarks/vllm_serving.py [--rounds 3] [--write]

vLLM reads the folders that ``qtutor export`` writes, of the embedded decoder and of a random one of 95 million weights
(speed does not depend on values). Each request has a prompt of 16 tokens and writes 64; all are added at once. vLLM
runs in one process, on one thread. Figures are tokens a second of processor time, the median of the rounds. ``--write``
stores them for chapter 10. vLLM's options are those of tests/engines/test_in_vllm.py, which explains them.
"""

import argparse
import gc
import json
import os
import random
import statistics
import sys
import tempfile
import time
from datetime import date
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import qtutor
from benchmarks.packed_matmul import processor
from benchmarks.serving import larger

STORED = Path(qtutor.__file__).parent / "course" / "stored" / "vllm.json"
AT_ONCE, PROMPT, NEW = (1, 8, 32), 16, 64
# Set before vLLM is imported: one process, one thread, no network; 4-bit layers have inputs of 16 bits.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "VLLM_CPU_INT4_W4A8": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
RECIPE = {"bits": 4, "symmetric": True, "group_size": 32}


def tokens_a_second(folder: Path, vocabulary: int, rounds: int) -> list[float]:
    """Tokens a second of processor time, for each number of requests at once."""
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    options = {"enforce_eager": True, "max_model_len": 256, "dtype": "bfloat16", "disable_log_stats": True}
    engine = LLM(model=str(folder), enable_prefix_caching=False, **options)
    draw, settings = random.Random(0), SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True)
    found = {count: [] for count in AT_ONCE}
    for turn in range(rounds + 1):
        for count in AT_ONCE:
            prompts = [{"prompt_token_ids": draw.choices(range(vocabulary), k=PROMPT)} for _ in range(count)]
            begin = time.process_time()
            written = engine.generate(prompts, settings, use_tqdm=False)
            taken = time.process_time() - begin
            assert sum(len(one.outputs[0].token_ids) for one in written) == count * NEW
            if turn:  # the first turn warms up
                found[count].append(count * NEW / taken)
    del engine
    cleanup_dist_env_and_memory()
    gc.collect()
    return [statistics.median(speeds) for speeds in found.values()]


def folders(model, tokenizer, folder: Path) -> dict[str, Path]:
    """The model in bfloat16 as transformers writes it, and in 4 bits as `qtutor` writes it for vLLM."""
    plain, packed = folder / "bf16", folder / "w4"
    model.to(torch.bfloat16).save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    qtutor.quantize(model, qtutor.Recipe(**RECIPE), progress=False)
    qtutor.export(model, packed, tokenizer=tokenizer, format="compressed-tensors")
    return {"bfloat16": plain, "4 bits": packed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="store the figures for chapter 10")
    options = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    torch.set_num_threads(1)
    torch.cpu._is_amx_tile_supported = lambda: False
    embedded, tokenizer = qtutor.load_decoder(device="cpu")
    rows = []
    for name, model in (("the embedded decoder", embedded), ("a random decoder", larger())):
        millions = round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1)
        with tempfile.TemporaryDirectory() as temporary:
            for kind, folder in folders(model, tokenizer, Path(temporary)).items():
                size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6
                speeds = tokens_a_second(folder, model.config.vocab_size, options.rounds)
                rows.append({"model": name, "millions": millions, "weights": kind, "megabytes": round(size, 1)})
                rows[-1]["tokens a second"] = [round(speed) for speed in speeds]
                print(f"{name}, {millions} million weights, {kind}, {size:.1f} MB:", *rows[-1]["tokens a second"])
    machine = f"{processor()}, 1 thread, vLLM {metadata.version('vllm-cpu')}"
    how = f"python benchmarks/vllm_serving.py; {date.today()}, {machine}"
    print(how)
    if options.write:
        lines = ",\n".join("  " + json.dumps(row) for row in rows)
        words = f' "how": {json.dumps(how)},\n "at once": {json.dumps(AT_ONCE)},\n "rows": [\n{lines}\n ]'
        STORED.write_text(f"{{\n{words}\n}}\n", "utf-8")


if __name__ == "__main__":
    main()
