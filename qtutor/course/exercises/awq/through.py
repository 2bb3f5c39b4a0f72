"""``awq.through``: fold a scale through a nonlinear activation, but only if this changes nothing.

The condition is ``act(s z) = s^k act(z)`` for every z and every s > 0: act is *homogeneous* of degree k. ReLU, leaky
ReLU (k = 1) and squared ReLU (k = 2) are homogeneous; SiLU, GELU, tanh, ELU and ReLU6 are not.
"""

import math

import torch

from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.inputs import noise


def through(first, bias, second, scale, act):
    places = [sign * 1.25**n for sign in (-1, 1) for n in range(-24, 25)]
    degrees, whole = set(), True
    for z in places:
        one, three = (act(torch.tensor([x], dtype=torch.float64)).item() for x in (z, 3 * z))
        if one == 0 or three / one <= 0:
            whole = whole and one == three == 0
        else:
            degrees.add(round(math.log(three / one, 3), 6))
    if not whole or len(degrees) != 1 or min(degrees) <= 0:
        return first.tolist(), bias.tolist(), second.tolist()
    roots = [s ** (1 / min(degrees)) for s in scale.tolist()]
    return (
        [[w / root for w in row] for row, root in zip(first.tolist(), roots)],
        [b / root for b, root in zip(bias.tolist(), roots)],
        [[w * s for w, s in zip(row, scale.tolist())] for row in second.tolist()],
    )


def linear(z):
    return z


def relu(z):
    return torch.relu(z)


def leaky_relu(z):
    return torch.where(z > 0, z, z / 8)


def squared_relu(z):
    return torch.relu(z) ** 2


def cube(z):
    return z**3


def silu(z):
    return z * torch.sigmoid(z)


def gelu(z):
    return torch.nn.functional.gelu(z)


def elu(z):
    return torch.where(z > 0, z, torch.exp(z.clamp(max=0)) - 1)


def relu6(z):
    return z.clamp(0, 6)


def cases():
    def layers(width, hidden, out, seed):
        first, bias = noise(hidden, width, seed=seed), noise(hidden, seed=seed + 30)
        return first, bias, noise(out, hidden, seed=seed + 60), noise(hidden, seed=seed + 90).exp()

    return [
        ("ReLU", (*layers(3, 4, 2, 1), relu)),
        ("ReLU, all matrices square", (*layers(3, 3, 3, 2), relu)),
        ("no activation at all", (*layers(4, 3, 2, 3), linear)),
        ("leaky ReLU", (*layers(2, 4, 3, 4), leaky_relu)),
        ("squared ReLU, as in Nemotron-4", (*layers(3, 5, 2, 5), squared_relu)),
        ("the cube", (*layers(2, 3, 2, 6), cube)),
        ("SiLU", (*layers(3, 4, 2, 7), silu)),
        ("GELU", (*layers(3, 4, 2, 8), gelu)),
        ("ELU, a plain line above zero", (*layers(2, 4, 3, 9), elu)),
        ("ReLU6, a ReLU that ends at 6", (*layers(3, 3, 2, 10), relu6)),
    ]


@solution
def right(first, bias, second, scale, act):
    z = torch.cat([torch.linspace(-20, 20, 401), torch.linspace(-0.2, 0.2, 41)]).double()
    once, twice = act(z), act(2 * z)
    power = (twice.abs().sum() / once.abs().sum()).log2().round().item()
    if power <= 0 or not torch.allclose(twice, 2**power * once):
        return first, bias, second
    root = scale ** (1 / power)
    return first / root[:, None], bias / root, second * scale


PLACES = "torch.cat([torch.linspace(-20, 20, 401), torch.linspace(-0.2, 0.2, 41)])"
TESTED = "power <= 0 or not torch.allclose(twice, 2**power * once)"
RETURNED = "first / root[:, None], bias / root, second * scale"
MISTAKES = {
    "you folded the scale through every activation. For SiLU, GELU, ELU and ReLU6, act(s z) is no fixed multiple of "
    "act(z), so change nothing for these.": right.edit(TESTED, "False"),
    "nothing is folded at all. A scale passes through some of these activations: those with act(s z) = s^k "
    "act(z) for some k.": right.edit(TESTED, "True"),
    "only activations with act(-z) = -act(z) let a scale through here, so ReLU does not. ReLU(s z) = s ReLU(z) for s > "
    "0, below zero as well.": right.edit(TESTED, f"{TESTED} or not torch.equal(act(-z), -once)"),
    "only degree 1 lets a scale through here. act(s z) = s^2 act(z) does, too: divide by the root of s.": (
        right.edit(TESTED, "not torch.allclose(twice, 2 * once)")
    ),
    "the rows are divided by s, no matter what act does to s. The squared ReLU squares s: divide by the root, and s "
    "comes out.": right.edit("scale ** (1 / power)", "scale"),
    "the rows are divided by s to the power k. It is the other way round: act raises the scale of its input to the "
    "power k, so divide by s^(1/k).": right.edit("1 / power", "power"),
    "you multiplied the columns of second by s^k. Multiply them by s itself, and divide the rows of first by "
    "s^(1/k).": right.edit(("scale ** (1 / power)", "scale"), ("second * scale", "second * scale**power")),
    "the columns get only the root of s. Multiply them by s itself.": right.edit("second * scale", "second * root"),
    "act was tried only above zero, where ELU is a plain line. Below zero it bends.": (
        right.edit(PLACES, "torch.linspace(0.01, 20, 401)")
    ),
    "act was tried only near zero, where ReLU6 looks like ReLU. It ends at 6.": (
        right.edit(PLACES, "torch.linspace(-1, 1, 401)")
    ),
    "act was tried only far from zero, where GELU looks like ReLU. Near zero it bends.": (
        right.edit(PLACES, "torch.cat([torch.linspace(-20, -10, 201), torch.linspace(10, 20, 201)])")
    ),
    "act was tried in a single place, z = 1. A scale has to pass at every z.": right.edit(PLACES, "torch.ones(1)"),
    "the bias was forgotten. It goes into act as well, so divide it like its row.": right.edit("bias / root", "bias"),
    "it is the other way round: multiply the columns of second, and divide the rows of first.": (
        right.edit(RETURNED, "first * root[:, None], bias * root, second / scale")
    ),
    "first and second are both multiplied. One has to undo the other: divide the rows of first.": (
        right.edit(RETURNED, "first * root[:, None], bias * root, second * scale")
    ),
    "only second has changed. Divide first and bias, which compute its input, accordingly.": (
        right.edit(RETURNED, "first, bias, second * scale")
    ),
    "only first and bias have changed. Multiply the columns of second by the scale.": (
        right.edit(RETURNED, "first / root[:, None], bias / root, second")
    ),
    "the columns of first are divided. Channel i of the middle is computed by *row* i of first.": (
        right.edit("first / root[:, None]", "first / root[torch.arange(first.shape[1]) % len(root)]")
    ),
    "the rows of second are multiplied. Channel i of the middle is read by *column* i of second.": (
        right.edit("second * scale", "second * scale[torch.arange(len(second)) % len(scale), None]")
    ),
}


def _the_same_function(arguments, results):
    """Whether the two layers still compute the same outputs, on a few inputs."""
    first, bias, second, _, act = arguments
    x = noise(50, first.shape[1], seed=99).double()

    def run(first, bias, second):
        return act(x @ first.T + bias) @ second.T

    before = run(first.double(), bias.double(), second.double())
    return torch.allclose(run(*map(torch.from_numpy, results)).double(), before, rtol=1e-4, atol=1e-4)


THROUGH = Exercise(
    name="awq.through",
    title="A scale folded through what is not linear",
    difficulty=4,
    minutes=30,
    reference=through,
    cases=cases,
    outputs=("first", "bias", "second"),
    mistakes=MISTAKES,
    properties=(("the two layers no longer compute the same outputs.", _the_same_function),),
    # A root, a division and a product in float32, each off by 6e-8 at most; the degree is found to six decimal places.
    tolerance=3e-6,
)
