"""``start.perplexity``: compute one number from logits and token ids."""

import math

import numpy as np
import torch

from qtutor.course.checking.comparing import to_array
from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.inputs import short


def perplexity(logits, token_ids):
    ids = token_ids.tolist()
    losses = []
    for row, following in zip(logits.double().tolist(), ids[1:]):  # the last row predicts a token that is not there
        largest = max(row)
        total = math.fsum(math.exp(value - largest) for value in row)
        losses.append(largest + math.log(total) - row[following])
    return math.exp(math.fsum(losses) / len(losses))


def cases():
    # One-hot rows that correctly predict each next token of 0, 1, 2, 0, with high probability.
    sure = 20 * torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]])
    hard = short(3, 5, 4, digits=2)
    hard[1, 2] -= 120  # nearly impossible, but it is the next token
    return [
        ("three tokens, two to predict", (torch.tensor([[0.0, 2, 1], [1, 0, 0], [3, 1, 2]]), torch.tensor([2, 1, 0]))),
        ("a model that knows nothing, 5 tokens", (torch.zeros(4, 5), torch.tensor([1, 4, 0, 2]))),
        ("a model that is sure and right", (sure, torch.tensor([0, 1, 2, 0]))),
        ("eight tokens", (3 * short(1, 8, 6, digits=2), torch.tensor([5, 0, 3, 3, 1, 2, 4, 0]))),
        ("two tokens, one to predict", (short(2, 2, 3, digits=2), torch.tensor([0, 2]))),
        ("logits far from 0", (short(4, 4, 5, digits=2) + 1000, torch.tensor([3, 1, 4, 0]))),
        ("a token that the model considered nearly impossible", (hard, torch.tensor([0, 1, 2, 3, 0]))),
    ]


@solution
def right(logits, token_ids):
    logs = logits.double().log_softmax(-1)
    losses = -logs[:-1].gather(1, token_ids[1:, None])
    return losses.mean().exp()


LOG_P, MEAN = "logits.double().log_softmax(-1)", "losses.mean().exp()"

MISTAKES = {
    "every row of logits is compared with its own token. Row i predicts the token after it: logits[:-1] go with "
    "token_ids[1:].": right.edit(("[:-1]", ""), ("[1:, None]", "[:, None]")),
    "rows of logits are compared with their own tokens (both are cut at the same end). Row i predicts the next token: "
    "logits[:-1] go with token_ids[1:].": right.edit("[1:, None]", "[:-1, None]"),
    "the shift goes the wrong way: every row is compared with the token before it. Row i predicts token i + 1.": (
        right.edit(("[:-1]", "[1:]"), ("[1:, None]", "[:-1, None]"))
    ),
    "rows of logits are compared with their own tokens (both are cut at the beginning). Row i predicts the next token: "
    "logits[:-1] go with token_ids[1:].": right.edit("[:-1]", "[1:]"),
    "the last row is compared with the first token again. Nothing comes after the last token: leave its row out, "
    "logits[:-1].": right.edit(("[:-1]", ""), ("token_ids[1:, None]", "token_ids.roll(-1)[:, None]")),
    "the last prediction is left out: with n tokens, n - 1 are predicted.": right.edit(
        ("[:-1]", "[:-2]"), ("[1:, None]", "[1:-1, None]")
    ),
    "you averaged the perplexities of single tokens. Average their -log p, and take exp once, at the end.": (
        right.edit("mean().exp()", "exp().mean()")
    ),
    "you averaged the probabilities. Average their logarithms: perplexity is a geometric mean.": (
        right.edit(MEAN, "1 / (-losses).exp().mean()")
    ),
    "you took natural logarithms, but 2 to the power of their mean. The inverse of log is exp.": (
        right.edit(MEAN, "2 ** losses.mean()")
    ),
    "you took logarithms to base 2, but exp of their mean. Undo log2 with 2 ** mean.": (
        right.edit("losses.mean()", "(losses / math.log(2)).mean()")
    ),
    "you took logarithms to base 10, but exp of their mean. Undo log10 with 10 ** mean.": (
        right.edit("losses.mean()", "(losses / math.log(10)).mean()")
    ),
    "you took natural logarithms, but 10 to the power of their mean. The inverse of log is exp.": (
        right.edit(MEAN, "10 ** losses.mean()")
    ),
    "you took the median of -log p. Perplexity is exp of the mean of -log p.": right.edit(
        "losses.mean()", "losses.median()"
    ),
    "you took the median of log p (the lower one of two in the middle). Perplexity is exp of minus the mean of log "
    "p.": right.edit("losses.mean()", "(-(-losses).median())"),
    "[:, token_ids] picks from every row the tokens of all other rows, too. From row i, take only p of the token that "
    "came after it: gather(1, token_ids[1:, None]).": (
        right.edit("logs[:-1].gather(1, token_ids[1:, None])", "logs[:-1][:, token_ids[1:]]")
    ),
    "only the worst token counts here. Perplexity is exp of the mean of -log p over all tokens.": (
        right.edit("losses.mean()", "losses.max()")
    ),
    "these are perplexities, one for each token. Average their -log p, and take exp once.": (
        right.edit(".mean()", "[:, 0]")
    ),
    "this is the mean over the whole vocabulary. Only p of the token that really came counts.": (
        right.edit("-logs[:-1].gather(1, token_ids[1:, None])", "-logs[:-1]")
    ),
    "this is the entropy of the probabilities. Only p of the token that really came counts.": right.edit(
        "-logs[:-1].gather(1, token_ids[1:, None])", "-(logs.exp() * logs)[:-1].sum(1)"
    ),
    "you took p of the token that the model expected most. Take p of the token that really came.": (
        right.edit("logs[:-1].gather(1, token_ids[1:, None])", "logs[:-1].amax(1)")
    ),
    "the logarithm is missing: this is exp of minus the mean of p. Average -log p.": (
        right.edit("log_softmax", "softmax")
    ),
    "the sum is divided by the size of the vocabulary, not by the number of predicted tokens.": (
        right.edit("losses.mean()", "(losses.sum() / logits.shape[1])")
    ),
    "the sum is divided by one less than the number of predictions. With n tokens, n - 1 are predicted.": (
        right.edit("losses.mean()", "(losses.sum() / (len(losses) - 1 or 1))")
    ),
    "this is the mean of -log p. Perplexity is exp of that mean.": right.edit(".exp()", ""),
    "the sign is missing: this is exp of the mean of log p, one divided by the perplexity.": (
        right.edit("-logs", "logs")
    ),
    "-log p is added up and not averaged.": right.edit("mean", "sum"),
    "the sum is divided by the number of tokens. One fewer is predicted: the first token has none before it.": (
        right.edit("losses.mean()", "(losses.sum() / len(token_ids))")
    ),
    "you used logits as log probabilities. The softmax is missing: use log_softmax over the vocabulary.": (
        right.edit(".log_softmax(-1)", "")
    ),
    "the softmax runs over the positions. It has to run over the vocabulary, the last axis.": (
        right.edit("log_softmax(-1)", "log_softmax(0)")
    ),
    "the softmax runs over the positions (without the last row). It has to run over the vocabulary, the last axis.": (
        right.edit(
            ("log_softmax(-1)", "log()"), ("logits.double()", "logits.double()[:-1].softmax(0)"), ("logs[:-1]", "logs")
        )
    ),
    "softmax is applied twice: cross_entropy and log_softmax expect logits, not probabilities.": (
        right.edit("log_softmax(-1)", "softmax(-1).log_softmax(-1)")
    ),
    "if logits are large, exp(logit) overflows, even in float64. Subtract each row's largest first, or use "
    "log_softmax.": right.edit(LOG_P, "(logits.double().exp() / logits.double().exp().sum(-1, keepdim=True)).log()"),
    "if logits are large, exp(logit) overflows. Subtract each row's largest first, or use log_softmax.": right.edit(
        LOG_P, "(logits.exp() / logits.exp().sum(-1, keepdim=True)).log().double()"
    ),
    "a tiny probability becomes 0 in float32, and its logarithm becomes infinite. Use log_softmax, which computes the "
    "logarithm directly.": right.edit("double().log_softmax(-1)", "softmax(-1).log().double()"),
}


def _tells_the_impossible(arguments, results) -> bool:
    """Whether the perplexity is large if a token comes that the model considered nearly impossible."""
    expected = perplexity(*arguments)
    return expected < 1e6 or not np.isfinite(results[0]) or bool(results[0] > expected / 2)


def adapt(theirs):
    """A learner's ``perplexity_of`` replaces :func:`qtutor.evaluate.perplexity`, one window at a time."""
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
    title="Perplexity, from logits and token ids",
    difficulty=2,
    minutes=15,
    reference=perplexity,
    cases=cases,
    outputs=("perplexity",),
    mistakes=MISTAKES,
    properties=(
        (
            "the perplexity of a nearly impossible token has no upper limit: do not add anything to p, and do not "
            "clamp p (log_softmax needs neither).",
            _tells_the_impossible,
        ),
    ),
    # The softmax may be computed in float32, and exp turns its absolute error of a few 1e-6 into a relative error.
    # Logits of 1000 have steps of 6e-5 in float32.
    tolerance=1e-4,
    replaces="qtutor.measure.losses.perplexity",
    adapt=adapt,
)
