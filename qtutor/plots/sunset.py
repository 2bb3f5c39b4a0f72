"""A computed picture to quantize: a sunset with gradients, edges, fine texture and noise, as in photographs."""

import numpy as np

HORIZON = 0.62  # heights run from 0 at the top to 1 at the bottom
SUN = (0.95, 0.44)
SUNLIGHT = (1.0, 0.8, 0.5)


def sunset(height: int = 200, width: int = 300, seed: int = 0) -> np.ndarray:
    """Float64 ``[height, width, 3]``, red, green and blue from 0 to 1. The same arguments give the same numbers."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : width / height : width * 1j]
    rng = np.random.default_rng(seed)
    picture = _sky(x, y)
    for base, rise, waves, colour in [
        (0.60, 0.055, (1.1, 2.7, 6.1), (0.45, 0.30, 0.42)),
        (0.635, 0.040, (0.8, 2.1, 9.0), (0.25, 0.18, 0.30)),
    ]:
        ridge = base - rise * sum(abs((x * w + rng.random()) % 1 - 0.5) * 2 / (i + 1) for i, w in enumerate(waves))
        haze = np.clip((y - ridge) / 0.12, 0, 1)[..., None]
        picture = _over(picture, np.array(colour) + 0.12 * haze, (y - ridge) * height + 0.5)
    picture = _over(picture, _water(x, y), (y - HORIZON) * height)
    sand = np.array((0.36, 0.27, 0.24)) + 0.06 * rng.standard_normal((height, width, 1))
    picture = _over(picture, sand, (y - 0.90 - 0.02 * np.sin(3 * x + 1)) * height / 2 + 0.5)
    return np.clip(picture, 0, 1)


def _blend(first, second, share: np.ndarray) -> np.ndarray:
    share = np.clip(share, 0, 1)[..., None]
    return (1 - share) * np.asarray(first) + share * np.asarray(second)


def _over(below: np.ndarray, above: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """Put ``above`` over ``below`` where ``coverage [height, width]`` is 1 or more, with a soft edge of one pixel."""
    return _blend(below, above, coverage)


def _sky(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    t = y / HORIZON
    night, rose, gold = (0.16, 0.20, 0.42), (0.86, 0.46, 0.40), (1.0, 0.80, 0.45)
    sky = _blend(_blend(night, rose, t / 0.6), gold, (t - 0.6) / 0.4)
    distance = np.hypot(x - SUN[0], y - SUN[1])
    sky = sky + 0.35 * np.exp(-((distance / 0.22) ** 2))[..., None] * np.array((1, 0.8, 0.4))
    streaks = sum(
        np.sin(2 * np.pi * (0.9 * f * x + 3.7 * f * y + f) + 2 * np.sin(2 * np.pi * (2.1 * f * y + f / 3))) / f
        for f in (1.3, 2.9, 5.3)
    )
    clouds = 0.10 * np.clip(streaks, 0, 2) * np.exp(-(((y - 0.22) / 0.1) ** 2))
    sky = sky + clouds[..., None] * np.array((1, 0.75, 0.7))
    return _over(sky, (1.0, 0.95, 0.75), (0.085 - distance) * len(y) / 1.5 + 0.5)


def _water(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    depth = np.clip((y - HORIZON) / (1 - HORIZON), 0, 1)
    waves = np.sin(2 * np.pi * 60 * np.sqrt(depth + 0.04) + 3 * np.sin(6 * x + 9 * depth) + 1.5 * np.sin(31 * x))
    path = np.exp(-(((x - SUN[0]) / (0.05 + 0.25 * depth)) ** 2))  # the path of light from the sun towards us
    glitter = 0.05 * waves + 0.45 * path * np.clip(waves, 0, 1) * (1 - 0.4 * depth)
    return _blend((0.92, 0.62, 0.42), (0.10, 0.14, 0.28), depth**0.7) + glitter[..., None] * np.array(SUNLIGHT)
