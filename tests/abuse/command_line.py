"""Misuses of the command line: each has to end soon, with one helpful paragraph and exit status 2.

    python -m tests.abuse.command_line            # tries all of them, and prints how many end well

Beside each misuse are the words that the paragraph has to contain. tests/abuse/test_command_line.py also runs them.
"""

import contextlib
import io
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import qtutor
from qtutor import cli
from qtutor.decoder import EMBEDDED

# (arguments, words that the message has to contain); {here} is a folder that prepare() fills.
MISUSES = [
    # --- the line itself ---
    ("", "required: COMMAND"),
    ("quantise embedded {here}/o", "Did you mean quantize?"),
    ("evaluate embedded", "Did you mean eval?"),
    ("quantize", "required: SRC, OUT"),
    ("quantize embedded", "required: OUT"),
    ("quantize embedded {here}/o --bitz 4", "no option --bitz. Did you mean --bits?"),
    ("quantize --groupsize 32", "no option --groupsize. Did you mean --group-size?"),
    ("quantize embedded {here}/o --callibration x", "Did you mean --calibration?"),
    ("quantize embedded {here}/o --bits four", "'four' is no number: write it like 4"),
    ("quantize embedded {here}/o --damping much", "invalid float value: 'much'"),
    ("quantize embedded {here}/o --format zip", "'zip' (choose from"),
    ("quantize embedded {here}/o --format guff", "Did you mean gguf?"),
    ("quantize embedded {here}/o extra", "'extra' is too much"),
    ("generate embedded", "the text is missing"),
    ("generate embedded --not-an-option-but-text", "goes after --"),
    ("inspect", "required: FILE"),
    # --- SRC ---
    ("generate embeded x", "did you mean embedded"),
    ("generate '' x", "SRC is ''"),
    ("generate {here}/nothing x", "nothing"),
    ("generate {here}/our x", "did you mean {here}/ours?"),
    ("generate {here}/ours/model.safetensors x", "name the folder, {here}/ours"),
    ("eval {here}/pickles", "qtutor reads none"),
    ("eval {here}/pickles/pytorch_model.bin", "qtutor reads none"),
    ("eval {here}/text.txt", "no GGUF file"),
    ("eval {here}/pipe", "is a pipe"),
    ("eval /dev/null", "is a device"),
    ("eval {here}/empty.gguf", "empty.gguf"),
    ("generate embedded x --device gpu", "--device gpu"),
    ("generate embedded x --device meta", "no values"),
    # --- what is asked for ---
    ("generate embedded x --max-new-tokens 0", "at least 1"),
    ("generate embedded {long}", "no room in the model's context"),
    ("generate embedded {surrogate}", "no text that can be written as UTF-8"),
    ("quantize embedded {here}/o --bits 9", "bits"),
    ("quantize embedded {here}/o --group-size 7", "group"),
    ("quantize embedded {here}/o --method magic", "'magic' is not known"),
    ("quantize embedded {here}/o --method rtn --clip output", "clip = 'output' needs inputs"),
    ("quantize embedded {here}/o --method nf4 --bits 3", "'nf4' has 4 bits"),
    ("quantize embedded {here}/o --method fp8 --bits 4", "bits = 4: method 'fp8' has 8 bits"),
    ("quantize embedded {here}/o --method int8 --group-size 64", "group_size = 64: method 'int8' has -1"),
    ("quantize embedded {here}/o --method gptq --levels mxfp4 --group-size 64", "levels of 'mxfp4' have 32"),
    ("quantize embedded {here}/o --target-size 1MB --bits 4", "--bits and --target-size both say how large"),
    ("quantize embedded {here}/o.gguf --target-size 1MB --bits 4", "--bits and --target-size both say how large"),
    ("generate embedded x --device xla", "from the 'XLA' backend. Name one that is here"),
    ("quantize embedded {here}/o --target-size " + "9" * 400 + "MB", "is no size"),
    ("convert {here}/ours {here}/o.gguf", "a GGUF file's types round weights"),
    ("convert {here}/ours {here}/o --target vllm --gptq-version 2", "'vllm' picks its format"),
    ("quantize embedded {here}/o --keep ''", "--keep names no layer"),
    ("quantize embedded {here}/o --keep '*'", "leaves no layer to be quantized"),
    ("quantize embedded {here}/o --keep '*.nothing'", "no layer is called '*.nothing'"),
    ("quantize embedded {here}/o --act-order groups", "says how gptq rounds"),
    ("quantize embedded {here}/o --method gptq --act-order sideways", "act_order = 'sideways'"),
    ("quantize embedded {here}/o --method gptq --damping -1", "damping"),
    ("quantize embedded {here}/o --method gptq --damping nan", "damping"),
    ("quantize embedded {here}/o --method gptq --samples 0", "--samples is 0"),
    ("quantize embedded {here}/o --method gptq --length -5", "--length is -5"),
    ("quantize embedded {here}/o --samples 5", "reads no text"),
    ("quantize embedded {here}/o --method gptq --samples 99999999999999999999", "more than 1,000,000"),
    # --- the text to calibrate with ---
    ("quantize embedded {here}/o --method gptq --calibration {here}/nosuch", "No such file"),
    ("quantize embedded {here}/o --calibration {here}/text.txt", "reads no text"),
    ("quantize embedded {here}/o --method awq --calibration {here}", "is a folder"),
    ("quantize embedded {here}/o --method awq --calibration {here}/pipe", "is a pipe"),
    ("quantize embedded {here}/o --method awq --calibration /dev/zero", "is a device"),
    ("quantize embedded {here}/o --method awq --calibration {here}/latin.txt", "no UTF-8 text: at byte 5"),
    ("quantize embedded {here}/o --method awq --calibration {here}/utf16.txt", "UTF-16"),
    ("quantize embedded {here}/o --method awq --calibration {here}/short.txt", "one sample takes 256"),
    ("quantize embedded {here}/o --method awq --calibration {here}/empty.gguf", "0 bytes"),
    ("quantize {here}/ours {here}/o --method gptq", "quantized already"),
    ("quantize embedded {here}/o --method awq --calibration {here}/bad.jsonl", "bad.jsonl, line 2: it is no JSON"),
    ("quantize embedded {here}/o --method awq --calibration {here}/keys.jsonl", "line 1: it has the keys 'prompt'"),
    ("quantize embedded {here}/o --method awq --calibration {here}/chat.jsonl", "line 1: the tokenizer has no chat"),
    ("quantize embedded {here}/o --method awq --calibration {here}/list.json", "is one JSON document"),
    # --- measured on a text ---
    ("eval embedded --text {here}/nosuch", "No such file"),
    ("eval embedded --text {here}/empty.gguf", "0 bytes"),
    ("eval embedded --text {here}/utf16.txt", "UTF-16"),
    ("eval embedded --text {here}/whole.gguf", "no UTF-8 text"),
    ("eval embedded --text {here}/short.txt", "one sample takes 512 tokens. Name a longer text"),
    ("eval embedded --text {here}/bad.jsonl", "bad.jsonl, line 2: it is no JSON"),
    ("eval embedded --window 1", "--window is 1"),
    ("eval embedded --tokens 100", "--tokens is 100, and one window takes 512"),
    ("eval embedded --against {here}/nosuch", "nosuch"),
    ("eval embedded --against {here}/larger", "different sizes (embedded 1,024, {here}/larger 1,032)"),
    ("compare embedded --against {here}/larger", "different sizes"),
    ("compare {here}/shuffled --against embedded", "do not use the same tokens"),
    ("compare embedded", "--against"),
    ("compare --against embedded", "SRC"),
    ("compare embedded --against embedded --picture {here}/a.jpg", "ends in .png or .svg"),
    ("compare embedded --against embedded --picture {here}/nosuch/a.png", "does not exist"),
    # --- chat ---
    ("generate embedded --chat 'x'", "no chat template"),
    ("generate embedded --chat", "no chat template"),
    # --- GGUF ---
    ("quantize embedded {here}/o.gguf --type Q4_K_XL", "Q4_K_XL"),
    ("quantize embedded {here}/o --type q4_k_m", "goes with --format gguf"),
    ("quantize embedded {here}/o.GGUF --bits 4 --method gptq", "--method gptq does not go with"),
    ("quantize embedded {here}/o.gguf --group-size 32", "--group-size does not go with"),
    ("quantize embedded {here}/o.gguf --group-size 64", "--group-size does not go with"),
    ("quantize embedded {here}/o.gguf --keep '*.o_proj'", "--keep does not go with"),
    ("quantize embedded {here}/o.gguf --lm-head", "--lm-head does not go with"),
    ("quantize embedded {here}/o.gguf --length 64", "reads no text"),
    ("quantize embedded {here}/o.gguf --imatrix {here}/nosuch", "No such file"),
    ("quantize embedded {here}/o.gguf --imatrix {here}/text.txt", "no imatrix file"),
    ("quantize embedded {here}/o.gguf --imatrix {here}/pipe", "a pipe"),
    ("quantize embedded {here}/o.gguf --imatrix {here}/text.txt --method awq", "leave one out"),
    ("quantize embedded {here}/o --imatrix {here}/text.txt", "goes with --format gguf"),
    ("quantize embedded {here}/o.gguf --format qtutor", "named like a file"),
    ("quantize {here}/ours {here}/o", "quantized already"),
    # --- inspect ---
    ("inspect {here}/nothing", "does not exist"),
    ("inspect {here}/pipe", "is a pipe"),
    ("inspect /dev/zero", "is a device"),
    ("inspect {here}/text.txt", "reads .safetensors and .gguf files"),
    ("inspect {here}/pickles", "holds no .safetensors"),
    ("inspect {here}/empty.gguf", "empty.gguf"),
    ("inspect {here}/ours --block 3", "--block 3 needs a tensor"),
    ("inspect {here}/ours/model.safetensors --tensor x", "is not a GGUF file"),
    ("inspect {here}/whole.gguf --tensor nothing", "nothing"),
    ("inspect {here}/whole.gguf --tensor blk.0.attn_q.weight --block 99999999", "99999999"),
    ("inspect 'a\0b'", "does not exist"),
    ("progress {here}/pickles", "is not a workspace"),
]


def prepare(here: Path) -> None:
    """Fill ``here`` with models, texts that can be read or not, and things that are not files."""
    quietly(["quantize", "embedded", str(here / "ours")])
    quietly(["quantize", "embedded", str(here / "whole.gguf"), "--type", "q8_0"])
    (here / "text.txt").write_text("def mean(values):\n    return sum(values) / len(values)\n" * 200)
    (here / "latin.txt").write_bytes("naïve café\n".encode("latin-1").replace(b"na", b"xyzna") * 200)
    (here / "utf16.txt").write_text("x = 1\n" * 500, encoding="utf-16")
    (here / "short.txt").write_text("x = 1\n" * 30)
    (here / "bad.jsonl").write_text('{"text": "good"}\n{"text": \n')
    (here / "keys.jsonl").write_text('{"prompt": "a"}\n')
    (here / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n' * 300)
    (here / "list.json").write_text('[{"text": "a"}]')
    others(here)
    (here / "empty.gguf").write_bytes(b"")
    os.mkfifo(here / "pipe")
    (here / "pickles").mkdir()
    (here / "pickles" / "config.json").write_text('{"model_type": "llama"}')
    (here / "pickles" / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    save_file({"a": np.zeros(3, np.float32)}, here / "other.safetensors")


def others(here: Path) -> None:
    """Two decoders that cannot be compared with the embedded one: a larger vocabulary, and two tokens exchanged."""
    model, tokenizer = qtutor.load()
    shutil.copytree(EMBEDDED, here / "shuffled")
    words = json.loads((here / "shuffled" / "tokenizer.json").read_text())
    ids = words["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (here / "shuffled" / "tokenizer.json").write_text(json.dumps(words))
    model.resize_token_embeddings(1032, mean_resizing=False)
    model.save_pretrained(here / "larger")
    tokenizer.save_pretrained(here / "larger")


def quietly(arguments: list[str]) -> tuple[int, str, str]:
    """Status, stdout and stderr of a command, run in this process."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            status = cli.main(arguments)
        except SystemExit as stopped:
            status = stopped.code
    return status, out.getvalue(), error.getvalue()


def wrong_with(line: str, mention: str, here: Path) -> str | None:
    """What is wrong with the way in which a misuse ends, or ``None``."""
    names = {"here": here, "long": "'" + "x = 1\n" * 400 + "'", "surrogate": "'a \udcff b'"}
    begin = time.monotonic()
    status, out, error = quietly(shlex.split(line.format(**names)))
    seconds, said = time.monotonic() - begin, " ".join(error.split())
    problems = {
        f"status {status}": status != 2,
        "something was printed": bool(out),
        "no paragraph": not error.startswith("qtutor: ") or "\n\n" in error or error.count("qtutor: ") > 1,
        "a traceback": "Traceback" in error,
        f"no {mention!r}": mention.format(**names) not in said,
        f"{seconds:.0f} seconds": seconds > 20,
        "something was written": (here / "o").exists() or any(here.glob("o.*gguf")) or any(here.glob("o.GGUF")),
    }
    found = [name for name, is_so in problems.items() if is_so]
    return f"{', '.join(found)}: {said or out}" if found else None


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        prepare(here)
        wrong = {line: wrong_with(line, mention, here) for line, mention in MISUSES}
    for line, problem in wrong.items():
        if problem:
            print(f"qtutor {line}\n    {problem}")
    good = sum(problem is None for problem in wrong.values())
    print(f"{good} of {len(MISUSES)} misuses end in one paragraph that helps.")
    return int(good < len(MISUSES))


if __name__ == "__main__":
    sys.exit(main())
