"""Sentences about ratios that hold on every machine: two similar values are "about as fast"."""

NEAR = 1.15


def times(ratio: float) -> str:
    """How fast one thing is compared with another, in words; ``ratio`` is the other's time divided by its own.

    >>> times(2.84), times(1.06), times(0.21)
    ('about 2.8 times as fast', 'about as fast', 'about 4.8 times as slow')
    """
    if 1 / NEAR < ratio < NEAR:
        return "about as fast"
    shown, word = (ratio, "fast") if ratio > 1 else (1 / ratio, "slow")
    return f"about {rounded(shown)} times as {word}"


def rounded(number: float) -> str:
    """Two digits: ``2.8``, ``28``, ``280``.

    >>> rounded(2.84), rounded(28.4), rounded(284)
    ('2.8', '28', '280')
    """
    if number < 10:
        return f"{number:.1f}"
    return f"{float(f'{number:.2g}'):.0f}"
