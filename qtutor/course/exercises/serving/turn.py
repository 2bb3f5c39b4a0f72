"""``serving.turn``: rotate queries and keys alike, so that their products stay the same."""

import torch

from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.inputs import noise


def turn(queries, keys):
    def turned(rows):
        width = len(rows[0])
        signs = [[(-1) ** (i & j).bit_count() for j in range(width)] for i in range(width)]
        return [[sum(x * s for x, s in zip(row, line)) / width**0.5 for line in signs] for row in rows]

    return turned(queries.tolist()), turned(keys.tolist())


def cases():
    loud = noise(6, 16, seed=56)
    loud[:, 3] += 20
    return [
        ("two channels", (torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, -1.0]]))),
        ("one channel: nothing to mix", (torch.tensor([[5.0]]), torch.tensor([[-2.0], [3.0]]))),
        ("four channels, one of them loud", (noise(2, 4, seed=51), torch.tensor([[0.0, 8.0, 0.0, 0.0]]))),
        ("as many queries as channels", (noise(4, 4, seed=52), noise(4, 4, seed=53))),
        ("eight channels", (noise(3, 8, seed=54), noise(5, 8, seed=55))),
        ("16 channels, one of them loud in all keys", (noise(2, 16, seed=57), loud)),
    ]


@solution
def right(queries, keys):
    queries, keys = queries.double(), keys.double()
    width = keys.shape[1]
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < width:
        upper = torch.cat([matrix, matrix], dim=1)
        lower = torch.cat([matrix, -matrix], dim=1)
        matrix = torch.cat([upper, lower])
    matrix = matrix / width**0.5
    return queries @ matrix, keys @ matrix


RESULT = "queries @ matrix, keys @ matrix"

MISTAKES = {
    "only the keys are turned. Then every score changes: turn the queries by the same matrix.": (
        right.edit(RESULT, "queries, keys @ matrix")
    ),
    "only the queries are turned. Turn the keys by the same matrix.": right.edit(RESULT, "queries @ matrix, keys"),
    "nothing is turned.": right.edit(RESULT, "queries, keys"),
    "the matrix is not divided by the root of its width: every score comes out `width` times too large.": (
        right.edit("matrix / width**0.5", "matrix")
    ),
    "the matrix is divided by its width. Queries and keys are both turned, so divide by the root of the width.": (
        right.edit("width**0.5", "width")
    ),
    "only the matrix for the keys is divided. The scores are then right, but the queries are not just turned: they "
    "grow.": (
        right.edit(("matrix = matrix / width**0.5", "pass"), (RESULT, "queries @ matrix, keys @ matrix / width"))
    ),
    "the matrix has no minus signs: all turned channels would be the same sum. The lower right quarter is negative.": (
        right.edit("-matrix", "matrix")
    ),
    "the sign is in the wrong quarter. Sylvester's matrix has it in the lower right one.": (
        right.edit(
            ("torch.cat([matrix, matrix], dim=1)", "torch.cat([matrix, -matrix], dim=1)"),
            ("lower = torch.cat([matrix, -matrix], dim=1)", "lower = torch.cat([matrix, matrix], dim=1)"),
        )
    ),
    "the whole lower half is negative. Only its right quarter has to be.": (
        right.edit("torch.cat([matrix, -matrix], dim=1)", "torch.cat([-matrix, -matrix], dim=1)")
    ),
    "queries and keys are exchanged: return the queries first.": right.edit(RESULT, "keys @ matrix, queries @ matrix"),
}

TURN = Exercise(
    name="serving.turn",
    title="A rotation that leaves scores alone",
    difficulty=2,
    minutes=15,
    reference=turn,
    cases=cases,
    outputs=("queries", "keys"),
    mistakes=MISTAKES,
    properties=(
        (
            "the scores changed: queries @ keys.T has to stay the same.",
            lambda arguments, results: _same_scores(arguments, results),
        ),
    ),
    tolerance=1e-5,  # sums in float32, in any order
)


def _same_scores(arguments, results) -> bool:
    queries, keys = (part.double() for part in arguments)
    before, after = queries @ keys.T, torch.tensor(results[0] @ results[1].T)
    return bool(torch.allclose(before, after, atol=1e-3))
