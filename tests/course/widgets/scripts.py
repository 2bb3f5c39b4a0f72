"""Call the functions of a live widget's script, without a browser."""

import json
import shutil
import subprocess

import pytest

from qtutor.course.widgets.live import script

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not here: the browser tests run the same functions")


def evaluate(name: str, expression: str, **given):
    """The value of a JavaScript ``expression`` that may use the script ``name`` and the values ``given``.

    Infinity comes back as the text "Infinity", because JSON has no such number.
    """
    lines = [script(name), *(f"const {key} = {json.dumps(value)};" for key, value in given.items())]
    lines.append("const plain = (key, value) => (value === Infinity ? 'Infinity' : value);")
    lines.append(f"console.log(JSON.stringify({expression}, plain));")
    result = subprocess.run([NODE, "-"], input="\n".join(lines), capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)
