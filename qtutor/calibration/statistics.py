"""Calibration: run text through a decoder and watch the inputs of each of its layers.

The weights alone do not say which of them matter: if an input channel is always near zero, its weights may be rounded
very coarsely. :func:`layer_inputs` watches the inputs of every linear layer while the model reads. It keeps a few sums
per channel, not the activations, so memory does not grow with the text.

Left out: a block whose inputs come from *quantized* blocks before it; see :mod:`.walk`.
"""

from dataclasses import dataclass

import torch
from torch import nn

from qtutor.errors import QtutorError, naming
from qtutor.guards.ids import check_token_ids
from qtutor.guards.running import in_eval

BATCH = 8


@dataclass(frozen=True)
class InputStatistics:
    """Statistics of a layer's inputs, per input channel; float64 ``[in]`` on the CPU.

    mean_abs, max_abs, mean_square: of x over all tokens. tokens: the number of tokens. samples: the inputs of the first
    tokens, float32 ``[samples, in]``, if the caller of :func:`layer_inputs` requested some, else ``None``.
    """

    mean_abs: torch.Tensor
    max_abs: torch.Tensor
    mean_square: torch.Tensor
    tokens: int
    samples: torch.Tensor | None = None


class RunningStatistics:
    """Sums over batches of inputs, from which :class:`InputStatistics` are computed at the end."""

    def __init__(self, width: int, samples: int = 0, device: torch.device | str = "cpu"):
        self.sum_abs, self.max_abs, self.sum_square = torch.zeros(3, width, dtype=torch.float64, device=device)
        self.tokens, self.wanted, self.kept = 0, samples, []

    def add(self, x: torch.Tensor) -> None:
        """Add inputs ``x [..., in]`` (any float dtype) of a layer; NaN and Inf are refused."""
        x = x.detach().flatten(0, -2)  # [tokens, in]
        size = x.double().abs()
        if not torch.isfinite(size).all():
            token, channel = (~torch.isfinite(size)).nonzero()[0].tolist()
            raise QtutorError(
                f"the input is {x[token, channel].item()} at token {self.tokens + token}, channel {channel}; all "
                "layers before this one had finite inputs. Look for broken weights just before this layer, "
                "or compute in float32 if the model runs in float16."
            )
        self.sum_abs += size.sum(dim=0)
        self.sum_square += size.square().sum(dim=0)
        if len(size):
            self.max_abs = torch.maximum(self.max_abs, size.amax(dim=0))
        if self.tokens < self.wanted:
            self.kept.append(x[: self.wanted - self.tokens].float().cpu())
        self.tokens += len(x)

    def result(self) -> InputStatistics:
        count = max(self.tokens, 1)
        samples = torch.cat(self.kept) if self.kept else None
        means = (self.sum_abs / count).cpu(), self.max_abs.cpu(), (self.sum_square / count).cpu()
        return InputStatistics(*means, self.tokens, samples)


@torch.inference_mode()
def layer_inputs(model: nn.Module, token_ids: torch.Tensor, samples: int = 0) -> dict[str, InputStatistics]:
    """Statistics of the inputs of every ``nn.Linear`` except the output matrix, by the layer's full name.

    model: a transformers decoder in any float dtype; it stays as it is. token_ids: int64 ``[samples, length]``, the
    text. samples: also keep the inputs of this many tokens, the first ones. Layers that read the same tensor (q, k and
    v; gate and up) share one :class:`InputStatistics`, which is computed once.
    Raises :class:`QtutorError` for token ids that are not such a matrix or not in the vocabulary, and for a model
    without float layers. If activations are NaN or infinite, the error names the layer that reads them first.
    """
    check_token_ids(token_ids, model.config.vocab_size)
    head = model.get_output_embeddings()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    if not layers:
        raise QtutorError("the model has no float linear layer to watch: calibrate before quantizing, on the original.")
    running: dict[str, RunningStatistics] = {}
    latest = None, None  # the tensor seen last, and its statistics

    def watch(name: str):
        def hook(module: nn.Linear, arguments: tuple) -> None:
            nonlocal latest
            x = arguments[0]
            # `latest` keeps the tensor alive, so "is" cannot take a new tensor at the same address for it.
            if x is latest[0]:
                running.setdefault(name, latest[1])
                return
            if name not in running:
                running[name] = RunningStatistics(x.shape[-1], samples, x.device)
            with naming(name):
                running[name].add(x)
            latest = x, running[name]

        return hook

    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in layers.items()]
    try:
        with in_eval(model):
            for ids in token_ids.split(BATCH):  # few at a time: the activations of all would not fit into memory
                model.base_model(ids.to(model.device), use_cache=False)
    finally:
        for hook in hooks:  # also after an error: the model is the caller's
            hook.remove()
    shared = {id(statistics): statistics.result() for statistics in running.values()}
    return {name: shared[id(running[name])] for name in layers}
