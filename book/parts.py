"""Cut pictures of several panels side by side into their panels, so that a phone can put them beneath each other.

A stored picture is one PNG. Between two panels it has a blank gutter over its whole height: near the middle if there
are two panels, near the thirds if there are three. The picture is cut at the first gutter of each of these places. Side
by side, the parts are the same picture again, to the pixel. Any other picture (one panel, a title over all panels,
panels of unequal width) stays whole, and scrolls sideways on a phone.
"""

from pathlib import Path

import numpy as np
from PIL import Image

BLANK = 250  # of 255: values from here on count as white
NARROWEST = 6  # pixels: narrower gaps are between letters
# Where gutters may be, as fractions of the width: for two panels, and for three.
PLACES = (((0.40, 0.60),), ((0.27, 0.42), (0.55, 0.72)))


def gutters(grey: np.ndarray) -> list[tuple[int, int]]:
    """The runs of blank columns in the inner part of a picture ``[height, width]``, as (first, behind the last)."""
    edges = np.diff((grey >= BLANK).all(axis=0).astype(np.int8), prepend=0, append=0)
    runs = zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist())
    width = grey.shape[1]
    return [(start, end) for start, end in runs if start > 0.15 * width and end < 0.85 * width]


def cuts(grey: np.ndarray) -> list[int]:
    """The places to cut a picture, in pixels from the left; empty if it stays whole."""
    width = grey.shape[1]
    if any(end - start >= NARROWEST for start, end in gutters(grey.T)):
        return []  # panels in several rows: cut by columns, they would be in the wrong order
    found = [(start, end) for start, end in gutters(grey) if end - start >= NARROWEST]
    for places in PLACES:
        inside = [[(s, e) for s, e in found if low * width <= (s + e) / 2 <= high * width] for low, high in places]
        # The first of several gutters is between two panels; after it comes a label of the next panel's axis.
        if all(inside) and sum(map(len, inside)) == len(found):
            return [(runs[0][0] + runs[0][1]) // 2 for runs in inside]
    return []


def cut(picture: Path) -> list[Path]:
    """Write the parts of a PNG as files beside it; returns their paths, none if it stays whole."""
    image = Image.open(picture)
    places = cuts(np.asarray(image.convert("L")))
    if not places:
        return []
    parts = []
    for number, (left, right) in enumerate(zip([0, *places], [*places, image.width]), start=1):
        part = picture.with_name(f"{picture.stem}-{number}.png")
        image.crop((left, 0, right, image.height)).save(part)
        parts.append(part)
    return parts
