"""The printed report lists every layer of a small model; for a large model, kinds of layers and the worst layers."""

import shlex
from dataclasses import replace
from pathlib import Path

from qtutor.cli import build_parser
from qtutor.recipe import Recipe
from qtutor.report import LayerReport, Report, next_steps


def report(blocks: int, output: bool = False) -> Report:
    rows = []
    for block in range(blocks):
        for number, name in enumerate(("self_attn.q_proj", "mlp.up_proj")):
            error = 0.01 * (block + 1) + 0.001 * number
            rows.append(
                LayerReport(
                    f"model.layers.{block}.{name}", (64, 32), error, 4.25, 1000, 300, error / 2 if output else None
                )
            )
    return Report(Recipe(), tuple(rows))


def test_a_small_report_has_every_layer():
    whole = report(15)
    assert str(whole) == whole.table()
    lines = str(whole).splitlines()
    assert len(lines) == 2 + 30 + 1
    assert lines[0].split() == ["layer", "shape", "error", "bits", "before", "after"]
    assert lines[2].split() == ["model.layers.0.self_attn.q_proj", "64", "x", "32", "0.0100", "4.250", "1,000", "300"]
    assert lines[-1].split() == ["total", "30%", "30,000", "9,000"]


def test_a_large_report_is_folded():
    lines = str(report(100)).splitlines()
    assert len(lines) < 20
    q, up = (
        next(line for line in lines if f"model.layers.*.{name}" in line).split()
        for name in ("self_attn.q_proj", "mlp.up_proj")
    )
    assert q == ["100", "model.layers.*.self_attn.q_proj", "64", "x", "32", "0.5050", "4.250", "100,000", "30,000"]
    assert up[5] == "0.5060"
    assert any(line.split() == ["total", "30%", "200,000", "60,000"] for line in lines)
    at = next(i for i, line in enumerate(lines) if line == "The 5 with the largest error:")
    worst = [(99, "mlp.up"), (99, "self_attn.q"), (98, "mlp.up"), (98, "self_attn.q"), (97, "mlp.up")]
    expected = [f"model.layers.{block}.{name}_proj" for block, name in worst]
    assert [line.split()[0] for line in lines[at + 4 :]] == expected
    assert "The 5 with the largest output:" in str(report(100, output=True))
    assert len(report(100).table().splitlines()) == 203


def test_a_kind_has_the_mean_of_the_errors_that_are_known():
    """An output's error is known only for layers that were calibrated."""
    rows = tuple(
        replace(row, output_error=None if at % 5 else 0.004 * (at // 2)) for at, row in enumerate(report(100).rows)
    )
    line = next(line for line in str(Report(Recipe(), rows)).splitlines() if "model.layers.*.mlp.up_proj" in line)
    known = [row.output_error for row in rows if row.output_error is not None and "up_proj" in row.name]
    assert len(known) == 20 and f"{sum(known) / 20:.4f}" in line.split()


def test_exceptions_are_kinds_of_their_own_and_notes_are_kept():
    whole = report(20)
    rows = list(whole.rows)
    rows[7] = replace(rows[7], bits_per_weight=8.25, note="rounded to nearest, since its inputs are all zero")
    lines = str(Report(Recipe(), tuple(rows))).splitlines()
    assert sum(line.lstrip().startswith(("1 model", "19 model")) for line in lines) == 2
    assert lines[-1] == "ATTENTION, model.layers.3.mlp.up_proj: rounded to nearest, since its inputs are all zero"
    many = Report(Recipe(), tuple(replace(row, note="odd") for row in whole.rows))
    assert str(many).count("ATTENTION") == 31 and str(many).endswith("and 10 more notes, in report.notes")


def test_a_report_ends_with_the_commands_that_load_the_result():
    lines = [line.split(maxsplit=1) for line in next_steps("my out", "a/b", chats=False).splitlines()[1:]]
    assert lines == [
        ["qtutor", "qtutor generate 'my out' 'some text'"],
        ["qtutor", "eval 'my out' --against a/b"],
        ["Python", "import qtutor; model, tokenizer = qtutor.load('my out')"],
    ]
    text = next_steps("some/Out.gguf", "smol", chats=True)
    assert "qtutor generate some/Out.gguf --chat" in text and "llama-cli -m some/Out.gguf" in text
    assert f"echo FROM {Path('some/Out.gguf').resolve()} > Modelfile" in text and "ollama create out\n" in text
    assert text.endswith("Python      from llama_cpp import Llama; llm = Llama('some/Out.gguf')")
    assert "Ollama" not in next_steps("a.gguf", "smol", chats=True, ollama=False)
    commands = [line[14:] for line in text.splitlines() if line[14:].startswith("qtutor ")]
    for command in commands:
        assert build_parser().parse_args(shlex.split(command)[1:]).run
    assert len(commands) == 2
