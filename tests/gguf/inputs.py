"""Rows to encode. They use no library's random numbers, so their bits are the same everywhere and always."""

import numpy as np

f4 = np.float32


def uniform(count: int, seed: int) -> np.ndarray:
    """Numbers in 0 ... 1, multiples of 2**-24, from a hash of whole numbers (Steele et al. 2014, SplitMix64)."""
    with np.errstate(over="ignore"):
        z = (np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed << 32)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float64) / 2**24


def gaussian(rows: int, columns: int, seed: int = 1, size: float = 0.02) -> np.ndarray:
    """Close to a normal distribution: sums of twelve uniform numbers."""
    total = sum(uniform(rows * columns, 100 * seed + part) for part in range(12)) - 6.0
    return (total * size).astype(f4).reshape(rows, columns)


def heavy_tailed(rows: int, columns: int, seed: int = 2) -> np.ndarray:
    """Quotients of two nearly normal numbers: one weight in a hundred is many times as large as the rest."""
    return (gaussian(rows, columns, seed) / (0.05 + np.abs(gaussian(rows, columns, seed + 50, 1.0)))).astype(f4)


def crafted(columns: int) -> np.ndarray:
    """One row for every case that has caused an error somewhere: ``[rows, columns]``."""
    i = np.arange(columns)
    noise = gaussian(8, columns, 3, 1.0)
    rows = [
        np.zeros(columns),
        np.full(columns, -0.0),
        np.where(i % 2, -0.0, 0.0),
        np.ones(columns),
        np.full(columns, -5.0),  # a constant below zero: scale 0, and a minimum
        np.where(i == 7, 100.0, 0.0),  # one outlier
        np.where(i == columns - 1, -100.0, noise[0] * 0.01),
        np.full(columns, 1e-30),
        noise[1] * 1e-30,
        np.where(i % 2, 0.3, -0.3),  # alternating signs: two candidates for the largest
        np.where(i % 2, -0.3, 0.3),
        i / columns,
        -i / columns,
        noise[2] * 1e-7,  # scales that are subnormal in float16
        noise[3] * 1e-16,
        noise[4] * 1e-38,
        np.full(columns, 1e-40),  # 1 / scale overflows
        noise[4] * 1e-42,
        np.where(i % 256 < 32, -6e4, noise[5] * 1e-7),  # one sub-block is far larger than all others
        np.rint(noise[6] * 1.5),  # ties
        np.rint(noise[6] * 8) / 16,
        1 + noise[7] * 1e-7,
        -3 + noise[7] * 1e-6,
        noise[7] * (np.abs(noise[0]) > 1.8),  # mostly zeros
        2.0 ** (i % 25 - 12),
        (2.0 - 2.0**-23) ** (i % 15 + 1) / 2,  # just below powers of two
    ]
    return np.array(rows).astype(f4)


def large(columns: int, value: float = 6e4) -> np.ndarray:
    """Weights close to the largest float16."""
    signs = np.sign(gaussian(2, columns, 4) + 1e-9)
    return np.concatenate([np.full((1, columns), value), signs * value]).astype(f4)


def importances(columns: int) -> dict[str, np.ndarray | None]:
    """No importance, and different kinds of importance per column."""
    u = uniform(columns, 77)
    return {
        "none": None,
        "ones": np.ones(columns, f4),
        "uneven": (u**4).astype(f4),
        "outliers": np.where(u > 0.98, 1e4, u).astype(f4),
        "sparse": np.where(uniform(columns, 78) > 0.9, u, 0).astype(f4),
        # So few columns count that least squares gives negative scales, also to sub-blocks with bits in shared bytes.
        "few": np.where(uniform(columns, 61) > 0.95, uniform(columns, 1061), 0).astype(f4),
        "zeros": np.zeros(columns, f4),
    }
