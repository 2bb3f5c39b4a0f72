"""Check that an engine writes the tokens that are likeliest by a reference, except for ties.

There are two kinds of ties: those that the engine's 16 bits make, and places where the reference itself is not sure, as
a second computation of it shows.
"""

import torch
from torch.nn.functional import kl_div, log_softmax

LAST_BIT = 2.0**-10  # of float16, as a share of the number


def likeliest(reference, ids: torch.Tensor, written: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """By ``reference``, at each place of ``written``: the best logit, its token, and the logit of the written token."""
    with torch.inference_mode():
        logits = reference(torch.cat([ids, written], dim=1)).logits[:, ids.shape[1] - 1 : -1]
    return *logits.max(-1), logits.gather(-1, written[..., None])[..., 0]


def check_likeliest(reference, ids: torch.Tensor, written: torch.Tensor) -> None:
    """Check that the tokens ``written`` are the likeliest by ``reference``, except for ties.

    Two logits are a tie if they differ by less than a last bit of float16: the engine has its logits in float16.
    """
    best, token, own = likeliest(reference, ids, written)
    assert (best - own <= LAST_BIT * best.abs()).all()
    assert (token == written).double().mean() >= 0.99


def logits_of(model, ids: torch.Tensor, texts: int = 4) -> torch.Tensor:
    """The logits of all places of ``ids``, float32 ``[places, vocabulary]``; a few texts are computed at once."""
    with torch.inference_mode():
        return torch.cat([model(part).logits.float().flatten(0, 1) for part in ids.split(texts)])


def noise(one: torch.Tensor, other: torch.Tensor) -> float:
    """How far logits ``[places, vocabulary]`` of the same model, computed in two ways, are from each other.

    This is the root of the mean square. A number that is added to all logits of a place changes no probability, so it
    is subtracted first.
    """
    apart = one - other
    return (apart - apart.mean(-1, keepdim=True)).square().mean().sqrt().item()


def is_sure(logits: torch.Tensor, noise: float) -> torch.Tensor:
    """bool ``[places]``: whether the likeliest token leads by more than three times the noise of a logit.

    The noise of one logit is the difference between two runs. The lead of one token over another is a difference of two
    logits, so it has 1.4 times this noise. So a lead of three times the noise is more than two standard deviations.
    """
    first, second = logits.topk(2).values.T
    return first - second > 3 * noise


def divergence(reference: torch.Tensor, logits: torch.Tensor) -> float:
    """The mean KL divergence of ``logits`` from the reference's logits, in nats per place."""
    ours, theirs = log_softmax(logits, -1), log_softmax(reference, -1)
    return kl_div(ours, theirs, log_target=True, reduction="batchmean").item()
