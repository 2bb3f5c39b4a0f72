"""``start.perplexity``: from logits and token ids to one number."""

import math

import torch

from qtutor.course.checking.comparing import to_array
from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise


def perplexity(logits, token_ids):
    ids = token_ids.tolist()
    losses = []
    for row, following in zip(logits.double().tolist(), ids[1:]):  # the last row predicts a token that is not there
        largest = max(row)
        total = math.fsum(math.exp(value - largest) for value in row)
        losses.append(largest + math.log(total) - row[following])
    return math.exp(math.fsum(losses) / len(losses))


def random(seed: int, *shape: int) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 100).round() / 100


def cases():
    # One-hot rows that foresee the next token of 0, 1, 2, 0: sure of themselves, and right.
    sure = 20 * torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]])
    hard = random(3, 5, 4)
    hard[1, 2] -= 120  # hardly thinkable, and then it comes
    return [
        ("three tokens, two to predict", (torch.tensor([[0.0, 2, 1], [1, 0, 0], [3, 1, 2]]), torch.tensor([2, 1, 0]))),
        ("a model that knows nothing, 5 tokens", (torch.zeros(4, 5), torch.tensor([1, 4, 0, 2]))),
        ("a model that is sure and right", (sure, torch.tensor([0, 1, 2, 0]))),
        ("eight tokens", (3 * random(1, 8, 6), torch.tensor([5, 0, 3, 3, 1, 2, 4, 0]))),
        ("two tokens, one to predict", (random(2, 2, 3), torch.tensor([0, 2]))),
        ("logits far from 0", (random(4, 4, 5) + 1000, torch.tensor([3, 1, 4, 0]))),
        ("a token that the model thought next to impossible", (hard, torch.tensor([0, 1, 2, 3, 0]))),
    ]


@solution
def right(logits, token_ids):
    logs = logits.double().log_softmax(-1)
    losses = -logs[:-1].gather(1, token_ids[1:, None])
    return losses.mean().exp()


MISTAKES = {
    "every row of logits is compared with its own token. Row i predicts the token after it: logits[:-1] go with "
    "token_ids[1:].": right.edit(("[:-1]", ""), ("[1:, None]", "[:, None]")),
    "rows of logits are compared with their own tokens (both are cut at the same end). Row i predicts the next token: "
    "logits[:-1] go with token_ids[1:].": right.edit("[1:, None]", "[:-1, None]"),
    "the shift goes the wrong way: every row is compared with the token before it. Row i predicts token i + 1.": (
        right.edit(("[:-1]", "[1:]"), ("[1:, None]", "[:-1, None]"))
    ),
    "you averaged the perplexities of single tokens. Average their -log p, and take exp once, at the end.": (
        right.edit("mean().exp()", "exp().mean()")
    ),
    "you averaged the probabilities. Average their logarithms: perplexity is a geometric mean.": (
        right.edit("losses.mean().exp()", "1 / (-losses).exp().mean()")
    ),
    "natural logarithms were taken, but 2 to the power of their mean. To log belongs exp.": (
        right.edit("losses.mean().exp()", "2 ** losses.mean()")
    ),
    "logarithms to base 2 were taken, but exp of their mean. To log2 belongs 2 ** mean.": (
        right.edit("losses.mean()", "(losses / math.log(2)).mean()")
    ),
    "this is the mean of -log p. Perplexity is exp of it.": right.edit(".exp()", ""),
    "the sign is missing: this is exp of the mean of log p, one divided by the perplexity.": (
        right.edit("-logs", "logs")
    ),
    "-log p is added up and not averaged.": right.edit("mean", "sum"),
    "the sum is divided by the number of tokens. One fewer is predicted: the first has nothing before it.": (
        right.edit("losses.mean()", "(losses.sum() / len(token_ids))")
    ),
    "logits were taken for log probabilities. The softmax is missing: use log_softmax over the vocabulary.": (
        right.edit(".log_softmax(-1)", "")
    ),
    "the softmax runs over the positions. It belongs over the vocabulary, the last axis.": (
        right.edit("log_softmax(-1)", "log_softmax(0)")
    ),
    "exp(logit) overflows where logits are large. Subtract each row's largest first, or use log_softmax.": right.edit(
        "logits.double().log_softmax(-1)", "(logits.exp() / logits.exp().sum(-1, keepdim=True)).log().double()"
    ),
    "a tiny probability becomes 0 in float32, and its logarithm infinite. Use log_softmax, which never leaves the "
    "logarithm.": right.edit("double().log_softmax(-1)", "softmax(-1).log().double()"),
}


def adapt(theirs):
    """A learner's ``perplexity_of`` in place of :func:`qtutor.evaluate.perplexity`: a window at a time."""
    from qtutor.measure import losses

    @torch.inference_mode()
    def perplexity(model, token_ids, window=losses.WINDOW):
        total, count = 0.0, 0
        for batch in losses.batches((model,), token_ids, window):
            for ids in batch:
                logits = model(ids[None].to(model.device), use_cache=False).logits[0].float().cpu()
                total += (len(ids) - 1) * math.log(float(to_array(theirs(logits, ids.cpu()))))
                count += len(ids) - 1
        return math.exp(total / count)

    return perplexity


PERPLEXITY = Exercise(
    name="start.perplexity",
    chapter="00_start_here",
    title="Perplexity, from logits and token ids",
    difficulty=2,
    minutes=15,
    reference=perplexity,
    cases=cases,
    outputs=("perplexity",),
    mistakes=MISTAKES,
    # The softmax may be taken in float32, and exp turns its absolute error of a few 1e-6 into a relative one. Logits of
    # 1000 have steps of 6e-5 there.
    tolerance=1e-4,
    replaces="qtutor.measure.losses.perplexity",
    adapt=adapt,
)
