"""Optimal brain surgeon, slow and obvious: after every column, the rest of the Hessian is inverted again, in float64.

Knows nothing of qtutor. Frantar et al. 2022 (arXiv 2210.17323), equations 2 and 3, one row of weights at a time.
"""

import numpy as np

from tests.reference.rtn import levels


def quantize(
    weight: np.ndarray,
    hessian: np.ndarray,
    bits: int,
    symmetric: bool,
    group: int,
    damping: float,
    order: list[int] | None = None,
    static: bool = False,
) -> np.ndarray:
    """The weights after quantization, float64 ``[out, in]``.

    order: the columns in the order of rounding. A group's levels are fitted when its first column is reached: to the
    present weights, or to the original ones (``static``).
    """
    original = weight.astype(np.float64)
    rows, columns = weight.shape
    order = list(range(columns)) if order is None else order
    hessian = hessian.astype(np.float64).copy()
    live = np.diag(hessian) != 0
    mean = np.diag(hessian)[live].mean() if live.any() else 1.0
    hessian += np.diag(np.where(live, damping * mean, 1.0))
    result = np.zeros((rows, columns))
    for row in range(rows):
        work = original[row].copy()
        grids = {}
        for position, column in enumerate(order):
            number = column // group
            if number not in grids:
                members = slice(number * group, (number + 1) * group)
                source = original[row, members] if static else work[members]
                grids[number] = levels(bits, symmetric, source.min(), source.max())
            result[row, column] = min(grids[number], key=lambda level: abs(level - work[column]))
            left = order[position:]  # this column and all that are still to be rounded
            inverse = np.linalg.inv(hessian[np.ix_(left, left)])
            work[left] -= (work[column] - result[row, column]) / inverse[0, 0] * inverse[0]
    return result
