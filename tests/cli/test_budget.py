"""Budgets on the command line: a mean number of bits, the size of the result, and words that are not sizes."""

import argparse
import json
import re

import pytest

from qtutor import cli, gguf
from qtutor.cli.parsing import nbytes, number
from tests.cli.test_cli import refused


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("90MB", 90 * 10**6),
        ("1.5 GiB", 3 * 2**29),
        ("0.5k", 500),
        ("7", 7),
        ("12 b", 12),
        ("3Ki", 3072),
        ("2mib", 2 * 2**20),
    ],
)
def test_sizes(text, count):
    assert nbytes(text) == count


@pytest.mark.parametrize("text", ["", "MB", "9xB", "-1MB", "1,5GB", "nan", "1e6", "iB", "90 M B"])
def test_what_is_no_size(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is no size: write it like 90MB"):
        nbytes(text)


def test_numbers():
    assert number("4") == 4 and isinstance(number("4"), int) and number("3.5") == 3.5
    with pytest.raises(argparse.ArgumentTypeError, match="'3,5' is no number"):
        number("3,5")


def test_a_result_as_small_as_was_asked_for(tmp_path, capsys):
    out = tmp_path / "out"
    command = ["quantize", "embedded", str(out), "--target-size", "1.2MB", "--samples", "8", "--length", "256"]
    assert cli.main([*command, "--plan"]) == 0
    assert not out.exists() and "Result: 1,1" in capsys.readouterr().out
    assert cli.main(command) == 0
    size = sum(path.stat().st_size for path in out.iterdir())
    assert 1_100_000 < size <= 1_200_000
    recipe = json.loads((out / "qtutor.json").read_text())["recipe"]
    assert recipe["target_size"] is None and len({one["bits"] for one in recipe["layers"].values()}) > 1


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["out", "--bits", "3", "--target-size", "1MB"], "--bits and --target-size both say how large the result gets"),
        (["out", "--target-size", "1kB"], "1,000 bytes are too few: with every layer at 2 bits, 9"),
        (["out", "--method", "nf4", "--target-size", "1MB"], "target_size chooses bits, and method 'nf4' has 4"),
        (["out", "--bits", "9.5"], "bits = 9.5: a whole number of bits from 2 to 8 is needed"),
        (["out.gguf", "--target-size", "1MB", "--type", "Q4_0"], "and --type Q4_0 names them: leave one out"),
        (["out.gguf", "--target-size", "1MB", "--bits", "3"], "both say how large the result gets: leave one out"),
        (
            ["out.gguf", "--target-size", "500kB"],
            "500,000 bytes are too few: with every layer at its smallest",
        ),
        (["out.gguf", "--bits", "2"], "bytes of matrices are too few"),
        (["out.gguf", "--bits", "nan"], "bits = nan: a number from 2 to 16 is needed"),
        (["out.gguf", "--bits", "17"], "a number from 2 to 16"),
    ],
)
def test_budgets_that_are_none(options, what, tmp_path, capsys):
    command = ["quantize", "embedded", str(tmp_path / options[0]), *options[1:], "--samples", "8"]
    if "--method" in options:
        command = command[:-2]
    assert what in " ".join(refused(command, capsys).split())
    assert not list(tmp_path.iterdir())


def test_a_gguf_file_as_small_as_was_asked_for(tmp_path, capsys):
    """The plan names the type of each matrix and the exact size of the file; --bits is the mean over all matrices."""
    out = tmp_path / "out.gguf"
    command = ["quantize", "embedded", str(out), "--target-size", "800kB", "--samples", "8", "--length", "256"]
    assert cli.main([*command, "--plan"]) == 0
    plan = capsys.readouterr().out
    assert not out.exists() and "with a type of its own for every matrix" in plan
    assert cli.main(command) == 0
    size, tensors = out.stat().st_size, gguf.read(out).tensors
    assert 780_000 < size <= 800_000 and f"Result: {size:,} bytes." in plan
    for name, info in tensors.items():
        assert info.type.name == "F32" or re.search(rf"  {re.escape(name)} +{info.type.name}\n", plan)
    assert len({info.type.name for info in tensors.values()}) > 3 and "general.file_type" not in gguf.read(out).metadata
    assert cli.main([*command[:3], "--bits", "4.5", *command[5:]]) == 0
    tensors = [info for info in gguf.read(out).tensors.values() if info.type.name != "F32"]
    bits = 8 * sum(info.nbytes for info in tensors) / sum(info.rows * info.shape[-1] for info in tensors)
    assert 4.4 < bits <= 4.5
