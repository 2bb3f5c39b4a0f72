"""Damage checkpoints in many ways and load each: it has to compute the same, or be refused in one paragraph.

    python -m tests.abuse.fuzz ours 500
    python -m tests.abuse.fuzz float 300 --seed 7 --show raw

Each checkpoint is loaded in its own process, with limits on memory and time, and computes a few logits. Possible
results:

    refused    a QtutorError of one paragraph, short, without control characters
    same       it loads, and the logits are those of the undamaged checkpoint
    other      it loads, but the logits are different (right if a file asks for it, as an edited rope_theta does: look
               at each)
    raw        another exception, or a traceback
    message    a QtutorError that is too long, or contains control characters
    dead       killed: out of memory, out of time, a crash
"""

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

import qtutor
from tests.abuse import damage, gguf_damage
from tests.forks import fork

MEMORY = 3 << 30  # bytes that a process may use in addition to those it already has
SECONDS = 30
RECIPES = (
    {"bits": 4, "group_size": 64},
    {"method": "nf4"},
    {"method": "int8"},
    {"method": "fp8"},
    {"bits": 3, "symmetric": True, "group_size": -1, "embeddings": True, "lm_head": True},
)


def whole(kind: str, folder: Path) -> list[Path]:
    """Undamaged checkpoints: our folders, one for each recipe; a float folder; GGUF files, ours and other tools'."""
    if kind in ("float", "inspect"):
        shutil.copytree(qtutor.decoder.EMBEDDED, folder / "float")
        (folder / "float" / "training.json").unlink()
        (folder / "float" / "README.md").unlink()
    if kind == "float":
        return [folder / "float"]
    if kind == "others":
        return gguf_damage.whole(folder)
    if kind == "gguf":
        model, tokenizer = qtutor.load(device="cpu")
        return [qtutor.export(model, folder / "a.gguf", format="gguf", type="Q8_0", pure=True, tokenizer=tokenizer)]
    made = []
    for number, recipe in enumerate(RECIPES):
        model, tokenizer = qtutor.load(device="cpu")
        qtutor.quantize(model, qtutor.Recipe(**recipe), progress=False)
        made.append(qtutor.export(model, folder / f"ours{number}", tokenizer=tokenizer))
    return [*made, folder / "float"] if kind == "inspect" else made


KINDS = {"ours": damage.OURS, "float": damage.FLOAT, "gguf": damage.GGUF, "inspect": damage.OURS}
KINDS["others"] = gguf_damage.OTHERS  # GGUF files without our config


def damaged(kind: str, originals: list[Path], folder: Path, seed: int) -> tuple[Path, Path, str]:
    """Make a damaged copy in ``folder``. Returns its path, the path of the original, and what was done."""
    rng = random.Random(f"{kind} {seed}")
    original = rng.choice(originals)
    how = damage.FLOAT if original.name == "float" else KINDS[kind]
    path = folder / "damaged" / original.name
    if original.is_dir():
        shutil.copytree(original, path)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(original, path)
    return path, original, rng.choice(how)(path, rng)


@torch.inference_mode()
def outcome(kind: str, path: Path, expected: torch.Tensor | None) -> tuple[str, str]:
    """The result of loading (or inspecting) ``path``, and the words of the message."""
    try:
        if kind == "inspect":
            from qtutor import inspection

            with contextlib.redirect_stdout(io.StringIO()) as out:
                inspection.show(path)
            text = out.getvalue()
            widest = max(map(len, text.splitlines()))
            odd = [c for c in text if not c.isprintable() and c != "\n"]
            return ("message", f"{widest} columns, {odd[:3]}") if widest > 400 or odd else ("same", "")
        found = logits(path)
    except qtutor.QtutorError as error:
        text = str(error)
        odd = [c for c in text if not c.isprintable()]
        return ("message" if odd or len(text) > 1500 else "refused"), f"{len(text)} characters: {text[:300]!r}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "raw", f"{type(error).__name__}: {str(error)[:300]!r}"
    return ("same" if found.shape == expected.shape and torch.equal(found, expected) else "other"), ""


@torch.inference_mode()
def logits(path: Path) -> torch.Tensor:
    model, tokenizer = qtutor.load(path, device="cpu")
    ids = torch.tensor([tokenizer("def mean(values):\n    return")["input_ids"]])
    return model(ids).logits


def in_a_process(run) -> tuple[str, str]:
    """Call ``run`` in its own process, with limited memory and time. Returns its result."""
    into, out = os.pipe()
    child = fork()
    if child == 0:
        os.close(into)
        os.dup2(os.open(os.devnull, os.O_RDWR), 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        signal.alarm(SECONDS)
        try:
            os.write(out, json.dumps(run()).encode())
        finally:
            os._exit(0)
    os.close(out)
    with open(into, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return tuple(json.loads(said)) if said else ("dead", f"status {status}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", nargs="*", default=["raw", "message", "dead", "other"])
    options = parser.parse_args()
    counts = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        seeds = range(options.seed, options.seed + options.count)
        for seed, (result, said, words) in zip(seeds, results(options.kind, seeds, Path(temporary))):
            counts[result] += 1
            if result in options.show:
                print(f"{seed} {result}: {said!r}: {words}", flush=True)
    print(f"{options.count} of {options.kind}:", ", ".join(f"{n} {result}" for result, n in counts.most_common()))


def results(kind: str, seeds: range, folder: Path) -> Iterator[tuple[str, str, str]]:
    """For every seed: the result, what was damaged, and the words of the message."""
    originals = whole(kind, folder)
    expected = {path: None if kind == "inspect" else logits(path) for path in originals}
    for seed in seeds:
        path, original, said = damaged(kind, originals, folder, seed)
        result, words = in_a_process(lambda p=path, o=original: outcome(kind, p, expected[o]))
        shutil.rmtree(folder / "damaged")
        for stray in folder.glob("**/outside-*"):
            stray.unlink()
        yield result, f"{original.name}, {said}", words


if __name__ == "__main__":
    sys.exit(main())
