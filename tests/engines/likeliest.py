"""Check that an engine writes the tokens that a reference holds for likeliest, except for ties: those that the engine's
16 bits make, and places where the reference itself, computed once more, is not sure.
"""

import torch
from torch.nn.functional import kl_div, log_softmax

LAST_BIT = 2.0**-10  # of float16, as a share of the number


def likeliest(reference, ids: torch.Tensor, written: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """At each place of ``written``, by ``reference``: the best logit, its token, and the logit of what was written."""
    with torch.inference_mode():
        logits = reference(torch.cat([ids, written], dim=1)).logits[:, ids.shape[1] - 1 : -1]
    return *logits.max(-1), logits.gather(-1, written[..., None])[..., 0]


def check_likeliest(reference, ids: torch.Tensor, written: torch.Tensor) -> None:
    """``written`` is what ``reference`` holds for likeliest, but for ties.

    Two logits are a tie if they are nearer to each other than a last bit of float16, in which the engine has them.
    """
    best, token, own = likeliest(reference, ids, written)
    assert (best - own <= LAST_BIT * best.abs()).all()
    assert (token == written).double().mean() >= 0.99


def logits_of(model, ids: torch.Tensor, texts: int = 4) -> torch.Tensor:
    """float32 ``[places, vocabulary]`` of all places of ``ids``, a few texts at once."""
    with torch.inference_mode():
        return torch.cat([model(part).logits.float().flatten(0, 1) for part in ids.split(texts)])


def noise(one: torch.Tensor, other: torch.Tensor) -> float:
    """How far logits ``[places, vocabulary]`` of the same model are from each other, computed in two ways.

    The root of the mean square; what is added to all logits of a place changes nothing, and is left out.
    """
    apart = one - other
    return (apart - apart.mean(-1, keepdim=True)).square().mean().sqrt().item()


def is_sure(logits: torch.Tensor, noise: float) -> torch.Tensor:
    """bool ``[places]``: whether the likeliest token leads by more than three times the noise of a logit.

    Two runs have this noise between them, so the lead of one token over another has 1.4 times as much: such a lead is
    beyond two standard deviations.
    """
    first, second = logits.topk(2).values.T
    return first - second > 3 * noise


def divergence(reference: torch.Tensor, logits: torch.Tensor) -> float:
    """The mean KL divergence of ``logits`` from the reference's, in nats a place."""
    ours, theirs = log_softmax(logits, -1), log_softmax(reference, -1)
    return kl_div(ours, theirs, log_target=True, reduction="batchmean").item()
