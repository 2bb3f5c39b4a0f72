"""Make a choice for every layer: the smallest sum of losses that a budget allows.

Given a price ``p`` per byte, every layer by itself takes the choice with the smallest total cost, ``loss + p * bytes``.
A higher price makes the result smaller, so bisection finds the price whose choices just fit (a Lagrange multiplier;
Everett 1963, "Generalized Lagrange Multiplier Method").
"""

from collections.abc import Hashable, Mapping

from qtutor.errors import QtutorError

Choice = Hashable  # a number of bits, or a block type
Table = Mapping[str, Mapping[Choice, float]]  # layer -> choice -> a number


FEWEST = "2 bits"  # for messages: the name of a layer's smallest choice, and advice if even that is too large
ADVICE = "Allow more, use larger groups, or quantize embeddings and lm_head, too."


def allocate(
    sizes: Table,
    costs: Table,
    budget: float,
    unit: str = "bytes",
    rest: int = 0,
    fewest: str = FEWEST,
    advice: str = ADVICE,
) -> dict[str, Choice]:
    """The choice of every layer: the smallest sum of ``costs`` whose ``sizes`` sum to ``budget`` at most.

    No price leads to the choices above the convex hull of size and cost, so these are not found. Therefore the rest of
    the budget is spent afterwards, step by step where it helps most. rest, fewest, advice: for the error's text: what
    is needed besides the layers, the name of the smallest choices, and what to do if these are too large.
    Raises :class:`QtutorError` if nothing fits, naming the smallest budget that would.
    """
    smallest = sum(min(row.values()) for row in sizes.values())
    if smallest > budget:
        raise QtutorError(
            f"{budget + rest:,.0f} {unit} are too few: with every layer at {fewest}, {smallest + rest:,.0f} are "
            f"needed. {advice}"
        )

    def cheapest(price: float) -> dict[str, Choice]:
        return {
            name: min(row, key=lambda choice: (costs[name][choice] + price * row[choice], row[choice], str(choice)))
            for name, row in sizes.items()
        }

    low, high = 0.0, max(max(row.values()) for row in costs.values()) + 1e-30  # at that price a byte outweighs any loss
    for _ in range(200):
        middle = (low + high) / 2
        if _total(sizes, cheapest(middle)) <= budget:
            high = middle
        else:
            low = middle
    return _spend_the_rest(sizes, costs, budget, cheapest(high))


def _spend_the_rest(sizes: Table, costs: Table, budget: float, chosen: dict[str, Choice]) -> dict[str, Choice]:
    """Give layers more, one after the other, first the layer that gains most per byte, as long as there is room."""
    while True:
        left = budget - _total(sizes, chosen)
        gains = [
            ((costs[name][now] - costs[name][more]) / (row[more] - row[now]), name, more)
            for name, row in sizes.items()
            for now in [chosen[name]]
            for more in row
            if 0 < row[more] - row[now] <= left and costs[name][more] < costs[name][now]
        ]
        if not gains:
            return chosen
        _, name, more = max(gains)
        chosen = chosen | {name: more}


def _total(sizes: Table, chosen: Mapping[str, Choice]) -> float:
    return sum(sizes[name][choice] for name, choice in chosen.items())
