"""Whether what an engine wrote is what a reference holds for likeliest, but for ties that its 16 bits make."""

import torch

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
