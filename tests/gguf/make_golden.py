"""Write golden.json: SHA-256 of what llama.cpp encodes, so that equality is also checked if it is not installed.

pip install xllamacpp && python -m tests.gguf.make_golden
"""

import hashlib
import importlib.metadata
import json
from pathlib import Path

import numpy as np

from qtutor.gguf import TYPES
from tests.gguf import inputs, llama_cpp

GOLDEN = Path(__file__).with_name("golden.json")
COLUMNS = 512
REFUSED = "infinite scale"


def cases(name: str):
    """Yield (label, rows, importance) for every test case of a type."""
    rows = {
        "crafted": inputs.crafted(COLUMNS),
        "gaussian": inputs.gaussian(5, COLUMNS),
        "heavy_tailed": inputs.heavy_tailed(5, COLUMNS),
        "large": inputs.large(COLUMNS),
    }
    for kind, importance in inputs.importances(COLUMNS).items():
        for label, weights in rows.items():
            if TYPES[name].importance or importance is None:
                yield f"{label}, importance {kind}", weights, importance


def digest(data: np.ndarray, name: str) -> str:
    if llama_cpp.has_infinite_scale(data, name):
        return REFUSED
    return hashlib.sha256(data.tobytes()).hexdigest()[:32]


def main() -> None:
    made = {
        name: {label: digest(llama_cpp.encode(rows, name, importance), name) for label, rows, importance in cases(name)}
        for name in TYPES
    }
    made["made with"] = f"xllamacpp {importlib.metadata.version('xllamacpp')}"
    GOLDEN.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
