"""Draw the picture of the README and of the book's first page: python book/picture.py (about five minutes, one core).

The picture shows one model and one prompt at 16, 4, 3 and 2 bits a weight. Each panel has one group of 64 real weights
on the levels of this width, the text that the decoder then writes, its true bytes, and KL divergence to the float model
on the held-out text, for rounding to nearest and for GPTQ with its defaults. All of this is computed here; nothing is
typed in.

The result is book/pictures/widths.svg. It is drawn as text and lines, so it is small, sharp, and can be read aloud. In
the file, colours follow the reader's light or dark setting. book/build.py separates the panels, so that they follow the
page's switch and are beneath each other on a phone.
"""

import copy
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

import torch

import qtutor

SVG = Path(__file__).parent / "pictures" / "widths.svg"
PROMPT = 'def is_empty(self):\n    """Return True if the queue is empty."""\n'
LAYER, ROW, GROUP = "model.layers.1.mlp.down_proj", 0, 64
WIDE, HIGH, GAP = 410, 276, 16
LINES, COLUMNS = 6, 50
STYLE = """
  svg { --ink: #1f2328; --dim: #57606a; --card: #ffffff; --line: #d0d7de; --mark: #0072b2; }
  @media (prefers-color-scheme: dark) {
    svg { --ink: #e6edf3; --dim: #a9b1ba; --card: #151a20; --line: #3d444d; --mark: #56b4e9; }
  }
"""


@dataclass(frozen=True)
class Panel:
    """The content of one panel. Weights and levels are fractions of the group's largest weight."""

    bits: int
    nbytes: int
    weights: list[float]
    levels: list[float]
    text: str  # the text that the decoder wrote after the prompt
    nearest: float | None  # KL divergence, nats a token; None for the float model
    gptq: float | None

    @property
    def caption(self) -> str:
        if self.nearest is None:
            return "the model as it was trained"
        return f"KL {self.nearest:.2f} rounded to nearest, {self.gptq:.2f} by GPTQ"

    @property
    def spoken(self) -> str:
        """A description of the panel for people who cannot see it."""
        levels = f"64 weights on {len(self.levels)} levels" if self.levels else "64 weights of one group"
        return f"{self.bits} bits, {self.nbytes:,} bytes, {self.caption}: {levels}, and what the decoder writes."


def measure() -> list[Panel]:
    """Round the embedded decoder to each width, let it write, and compare it with the float model."""
    model, tokenizer = qtutor.load_decoder()
    ids = qtutor.evaluate.held_out_tokens(tokenizer)
    weights = model.get_submodule(LAYER).weight[ROW, :GROUP].detach()
    panels = [Panel(16, _nbytes(model), _shares(weights, weights), [], written(model, tokenizer), None, None)]
    for bits in (4, 3, 2):
        nearest = rounded(model, bits)
        gptq = copy.deepcopy(model)
        qtutor.quantize(gptq, qtutor.Recipe("gptq", bits, GROUP), progress=False)
        layer = nearest.get_submodule(LAYER).quantized()
        restored = layer.dequantize()[ROW, :GROUP]
        levels = layer.scales[ROW, 0].float() * (torch.arange(2**bits) - layer.zeros[ROW, 0].float())
        kl = [qtutor.evaluate.compare(candidate, model, ids).kl for candidate in (nearest, gptq)]
        panels.append(
            Panel(
                bits,
                _nbytes(nearest),
                _shares(restored, weights),
                _shares(levels, weights),
                written(nearest, tokenizer),
                *kl,
            )
        )
    return panels


def rounded(model, bits: int):
    """A copy of the model with its blocks rounded to nearest."""
    candidate = copy.deepcopy(model)
    qtutor.quantize(candidate, qtutor.Recipe(bits=bits, group_size=GROUP), progress=False)
    return candidate


def written(model, tokenizer) -> str:
    """The text that the decoder writes after the prompt, without the prompt."""
    return qtutor.generate(model, tokenizer, PROMPT, max_new_tokens=48)[len(PROMPT) :]


def _nbytes(model) -> int:
    # The bytes of a checkpoint: embedding and norms have 16 bits there, although they are computed in 32 here.
    return qtutor.evaluate.model_bytes(copy.deepcopy(model).bfloat16())


def _shares(values: torch.Tensor, of: torch.Tensor) -> list[float]:
    return (values.float() / of.abs().max()).tolist()


def draw(panels: list[Panel]) -> str:
    """The whole picture as SVG, with two panels in a row."""
    rows = -(-len(panels) // 2)
    width, height = 2 * WIDE + 3 * GAP, rows * HIGH + (rows + 1) * GAP
    spoken = "One language model at four widths. " + " ".join(panel.spoken for panel in panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(spoken)}" font-family="system-ui, -apple-system, Segoe UI, sans-serif">',
        f"<style>{STYLE}</style>",
        f'<rect width="{width}" height="{height}" rx="10" fill="var(--card)"/>',
    ]
    for number, panel in enumerate(panels):
        x, y = GAP + number % 2 * (WIDE + GAP), GAP + number // 2 * (HIGH + GAP)
        parts.append(_panel(panel, x, y))
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, x: int, y: int) -> str:
    parts = [
        f'<svg class="panel" x="{x}" y="{y}" width="{WIDE}" height="{HIGH}" viewBox="0 0 {WIDE} {HIGH}" role="img" '
        f'aria-label="{escape(panel.spoken)}">',
        _text(4, 18, f"{panel.bits} bits a weight", "ink", 'font-size="17" font-weight="600"'),
        _text(WIDE - 4, 18, f"{panel.nbytes:,} bytes", "dim", 'font-size="13" text-anchor="end"'),
    ]
    top, middle, half = 30, 80, 46
    lowest, highest = min([-1.0, *panel.levels]), max([1.0, *panel.levels])
    reach = max(-lowest, highest)
    for level in panel.levels:
        at = middle - half * level / reach
        parts.append(f'<path d="M4 {at:.1f}H{WIDE - 4}" stroke="var(--line)"/>')
    if not panel.levels:
        parts.append(
            f'<rect x="4" y="{top + 4}" width="{WIDE - 8}" height="{2 * half}" fill="none" stroke="var(--line)"/>'
        )
    step = (WIDE - 24) / (len(panel.weights) - 1)
    dots = "".join(
        f'<circle cx="{12 + step * i:.1f}" cy="{middle - half * value / reach:.1f}" r="2.4"/>'
        for i, value in enumerate(panel.weights)
    )
    parts.append(f'<g fill="var(--mark)">{dots}</g>')
    mono = (
        'font-size="12.5" font-family="ui-monospace, SFMono-Regular, Consolas, Menlo, monospace" xml:space="preserve"'
    )
    lines = PROMPT.splitlines()[:1] + panel.text.splitlines()
    for number, line in enumerate(lines[:LINES]):
        shown = line if len(line) <= COLUMNS else line[: COLUMNS - 1] + "…"
        parts.append(_text(4, 150 + 17 * number, shown, "dim" if number == 0 else "ink", mono))
    parts.append(_text(4, HIGH - 10, panel.caption, "ink", 'font-size="13.5"'))
    return "\n".join([*parts, "</svg>"])


def _text(x: float, y: float, words: str, colour: str, more: str) -> str:
    return f'<text x="{x}" y="{y}" fill="var(--{colour})" {more}>{escape(words, quote=False)}</text>'


def main() -> int:
    torch.set_num_threads(1)
    SVG.write_text(draw(measure()), encoding="utf-8")
    print(f"{SVG}: {SVG.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
