"""llama.cpp itself answers a question, if the package xllamacpp is installed (``pip install xllamacpp``).

It runs in a process of its own. Even if that process crashes or writes megabytes of log, the notebook goes on.
"""

import json
import subprocess
import sys
from pathlib import Path

from qtutor.installed import is_installed

SECONDS = 120
PROGRAM = """
import json, sys
import xllamacpp
asked = json.loads(sys.argv[1])
parameters = xllamacpp.CommonParams()
parameters.model.path = asked["file"]
parameters.n_ctx = 512
parameters.n_parallel = 1
parameters.cpuparams.n_threads = 1
parameters.sampling.temp = 0.0
request = {"max_tokens": asked["tokens"], "temperature": 0.0, "top_k": 1}
server = xllamacpp.Server(parameters)
if asked["chat"]:
    messages = [{"role": "user", "content": asked["question"]}]
    text = server.handle_chat_completions(request | {"messages": messages})["choices"][0]["message"]["content"]
else:
    text = server.handle_completions(request | {"prompt": asked["question"]})["choices"][0]["text"]
print("ANSWER " + json.dumps(text), flush=True)
"""


def is_here() -> bool:
    """Whether llama.cpp can answer questions here."""
    return is_installed("xllamacpp")


def said(file: str | Path, question: str, tokens: int = 48, chat: bool = True) -> str:
    """The greedy answer of llama.cpp with the model in ``file``; if there is none, the reason in parentheses."""
    if not is_here():
        return "(llama.cpp is not installed here; pip install xllamacpp installs it)"
    asked = json.dumps({"file": str(file), "question": question, "tokens": tokens, "chat": chat})
    command = [sys.executable, "-c", PROGRAM, asked]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"(llama.cpp did not answer within {SECONDS} seconds)"
    found = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    if not found:
        return f"(llama.cpp ended with status {done.returncode} and no answer)"
    return json.loads(found[-1].removeprefix("ANSWER "))
