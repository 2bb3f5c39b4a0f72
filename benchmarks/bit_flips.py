"""Flip every bit of a Q4_K block, one at a time: KL and text of the embedded decoder, for chapter 07.

    python benchmarks/bit_flips.py      # about three minutes on one idle core

The results go into qtutor/course/stored/bit_flips.json, which the widget "blast radius" shows.
"""

import json
import time

import torch

from qtutor.course.bit_flips import BITS, STORED, Decoder, bits_by_kind, settings

torch.set_num_threads(1)


def measure() -> dict:
    decoder, began = Decoder(), time.monotonic()
    kl = [decoder.kl(bit) for bit in range(BITS)]
    print(f"KL of {BITS} bits: {time.monotonic() - began:.0f} s", flush=True)
    began = time.monotonic()
    texts, text_of = [decoder.text], []
    for bit in range(BITS):
        text = decoder.continuation(bit)
        if text not in texts:
            texts.append(text)
        text_of.append(texts.index(text))
    print(f"{len(texts)} texts: {time.monotonic() - began:.0f} s")
    return settings() | {
        "block": bytes(decoder.block).hex(),
        "kl": [float(f"{value:.4g}") for value in kl],
        "texts": texts,
        "text_of": text_of,
    }


def main() -> None:
    found = measure()
    STORED.write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf-8")
    for kind, bits in bits_by_kind().items():
        of = sorted(found["kl"][bit] for bit in bits)
        changed = sum(found["text_of"][bit] != 0 for bit in bits)
        print(
            f"{kind}: {len(bits)} bits, median KL {of[len(of) // 2]:.2g}, largest {of[-1]:.3g}; {changed} change texts"
        )


if __name__ == "__main__":
    main()
