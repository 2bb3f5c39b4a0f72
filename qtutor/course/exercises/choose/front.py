"""``choose.front``: the models that no other model beats in both bytes and loss."""

from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise


def front(sizes, losses):
    kept = []
    for number, (size, loss) in enumerate(zip(sizes, losses, strict=True)):
        beaten = False
        for other_size, other_loss in zip(sizes, losses, strict=True):
            as_good = other_size <= size and other_loss <= loss
            beaten = beaten or (as_good and (other_size, other_loss) != (size, loss))
        if not beaten:
            kept.append((size, number))
    return [number for _, number in sorted(kept)]


def cases():
    return [
        ("three models, none beaten", ([3, 2, 1], [0.1, 0.2, 0.4])),
        ("the second is beaten by the first", ([4, 5, 2], [0.3, 0.35, 0.9])),
        ("two of the same size", ([4, 4, 2], [0.3, 0.2, 0.9])),
        ("two with the same loss", ([4, 3, 6], [0.3, 0.3, 0.1])),
        ("one model", ([7], [0.2])),
        ("one that beats all others", ([5, 4, 3, 6], [0.5, 0.4, 0.1, 0.3])),
        ("six models, most of the large ones first", ([9, 7, 8, 5, 6, 3], [0.01, 0.02, 0.05, 0.1, 0.4, 0.2])),
        ("beaten by one that is far smaller", ([10, 1, 9, 8], [0.5, 0.4, 0.3, 0.6])),
    ]


@solution
def right(sizes, losses):
    order = sorted(range(len(sizes)), key=lambda i: (sizes[i], losses[i]))
    kept = []
    for i in order:
        if not kept or losses[i] < losses[kept[-1]]:
            kept.append(i)
    return kept


KEY, BETTER = "(sizes[i], losses[i])", "losses[i] < losses[kept[-1]]"

MISTAKES = {
    "the front has only the model of least loss. Smaller ones that lose more belong to it, too.": (
        right.edit("return kept", "return kept[-1:]")
    ),
    "the front has only the smallest model. Larger ones that lose less belong to it, too.": (
        right.edit("return kept", "return kept[:1]")
    ),
    "two models with the same loss are both kept, but the smaller one beats the larger.": (
        right.edit(BETTER, "losses[i] <= losses[kept[-1]]")
    ),
    "each model is compared only with its neighbour in size. It has to lose less than all smaller ones.": (
        right.edit(BETTER, "losses[i] < losses[order[order.index(i) - 1]]")
    ),
    "models that lose more are kept: going up in size, a model has to lose less than the last one kept.": (
        right.edit(BETTER, "losses[i] > losses[kept[-1]]")
    ),
    "all models are kept, in the order of their sizes. Leave out those that another one beats.": (
        right.edit(BETTER, "True")
    ),
    "two models of the same size may both be kept, but the one that loses less beats the other.": right.edit(
        KEY, "(sizes[i], -losses[i])"
    ),
    "the largest comes first. Return the models from the smallest to the largest.": right.edit(
        "return kept", "return kept[::-1]"
    ),
    "these are sizes. Return the numbers of the models, 0 for the first.": (
        right.edit("return kept", "return [sizes[i] for i in kept]")
    ),
    "the numbers are counted from 1. The first model is number 0.": (
        right.edit("return kept", "return [i + 1 for i in kept]")
    ),
    "the numbers are in the order of the list. Return them from the smallest model to the largest.": (
        right.edit("return kept", "return sorted(kept)")
    ),
    "you returned the models that are beaten. Return those that no other model beats.": (
        right.edit("return kept", "return [i for i in order if i not in kept]")
    ),
}

FRONT = Exercise(
    name="choose.front",
    title="What nothing beats",
    difficulty=2,
    minutes=15,
    reference=front,
    cases=cases,
    outputs=("numbers",),
    mistakes=MISTAKES,
)
