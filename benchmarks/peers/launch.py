"""Runs one quantizer in its own process, and measures its time and memory. This module must import almost nothing.

The largest memory that Linux reports for a process includes the time before the process was replaced by the program
that it runs. So if the parent had imported torch, its hundreds of MB would count for every child that it measures.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path.home() / ".cache" / "qtutor" / "peers"
PEERS = {"llmcompressor": "llm-compressor", "gptqmodel": "GPTQModel"}


@dataclass(frozen=True)
class Run:
    """Seconds from start to end of the process, with imports; seconds of processor time on all its threads; and its
    largest resident memory."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def python_of(who: str) -> str:
    """The interpreter that runs ``run_<who>.py``: a peer's own, or for qtutor the one that runs this module."""
    if who not in PEERS:
        return sys.executable
    python = CACHE / f"venv-{who}" / "bin" / "python"
    if not python.exists():
        raise SystemExit(f"{python} is not there: python benchmarks/peers/setup.py makes the peers' environments.")
    return str(python)


def script_of(who: str) -> Path:
    return HERE / f"run_{who}.py"


def launch(
    who: str,
    checkpoint: Path,
    tokens: Path,
    out: Path,
    method: str,
    bits: int,
    group_size: int,
    settings: dict | None = None,
    dequantized: Path | None = None,
    threads: int = 1,
    log: Path | None = None,
) -> Run:
    """Quantize ``checkpoint`` into ``out``. Raises ``SystemExit`` with the end of the output if the process fails."""
    command = [python_of(who), str(script_of(who)), str(checkpoint), str(tokens), str(out), "--method", method]
    command += ["--bits", str(bits), "--group-size", str(group_size), "--set", json.dumps(settings or {})]
    command += ["--dequantized", str(dequantized)] if dequantized else []
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    log = log or out.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        start = time.perf_counter()
        process = subprocess.Popen(
            # GPTQModel leaves a folder of logs in the folder in which it is started.
            command,
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            env=environment,
            cwd=log.parent,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {process.returncode}:\n{log.read_text()[-3000:]}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
