"""Train the embedded decoder: ``python -m qtutor.decoder.training FOLDER``.

The model has Llama's architecture and is small enough for two CPU cores. It is trained long for its size, because
sensitivity to quantization grows with the training tokens per parameter (Kumar et al. 2024, "Scaling Laws for
Precision", arXiv 2411.04330). The text is :mod:`qtutor.decoder.corpus`. The tokenizer is a byte-level BPE with Qwen2's
split expression, which separates digits, as arithmetic needs.

All random numbers are seeded, and every step draws its own batch from ``[seed, step]``. So a run that was stopped can
go on from its checkpoint and give the same result. Left out: evaluation while training (see
``benchmarks/decoder_sensitivity.py``) and more than one device.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qtutor.decoder import corpus
from qtutor.files import written_beside
from qtutor.gguf.pre_tokenizers import QWEN2_SPLIT

END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 1024
CONTEXT = 512
BATCH = 8
LEARNING_RATE = 4e-3  # falls linearly to zero
WARMUP_STEPS = 200
CODE_SHARE = 9 / 16  # of the windows; the rest are interpreter sessions
SESSIONS = 80_000


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE with :data:`VOCABULARY` entries. llama.cpp's ``qwen2`` splits text the same way."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def new_model(seed: int) -> LlamaForCausalLM:
    """The untrained decoder. All widths are multiples of 256, so every GGUF block type fits."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            prompts_begin_with_bos=True,  # the tokenizer adds no BOS: qtutor.measure.generation reads this option
        )
    )


class Batches:
    """Windows of :data:`CONTEXT` + 1 tokens: code from any place, interpreter sessions from their first line."""

    def __init__(self, tokenizer: Tokenizer, modules: list[str], seed: int, sessions: int = SESSIONS):
        self.seed = seed
        self.code = self._stream(tokenizer, modules)
        self.sessions = self._stream(tokenizer, corpus.training_sessions(sessions, seed))
        self.session_starts = np.flatnonzero(self.sessions == 0)

    @staticmethod
    def _stream(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
        encoded = tokenizer.encode_batch([END_OF_TEXT + text for text in texts])
        return np.concatenate([np.array(e.ids, dtype=np.int64) for e in encoded])

    def at(self, step: int) -> torch.Tensor:
        """The batch of one step, ``[BATCH, CONTEXT + 1]``; the same seed and step give the same batch."""
        rng = np.random.default_rng([self.seed, step])
        rows = []
        for _ in range(BATCH):
            if rng.random() < CODE_SHARE:
                stream, start = self.code, rng.integers(len(self.code) - CONTEXT - 1)
            else:
                last = np.searchsorted(self.session_starts, len(self.sessions) - CONTEXT - 1)
                stream, start = self.sessions, self.session_starts[rng.integers(last)]
            rows.append(stream[start : start + CONTEXT + 1])
        return torch.from_numpy(np.stack(rows))


def learning_rate(step: int, steps: int) -> float:
    """The learning rate of ``step``: it rises linearly during warm-up, then falls linearly to zero."""
    return LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS, (steps - step) / (steps - WARMUP_STEPS))


def save_checkpoint(path: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write weights and AdamW's moments to one safetensors file (no pickle), first beside ``path``, then renamed."""
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"weight.{name}"] = parameter.detach().contiguous()
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}.{name}"] = value.contiguous()
    with written_beside(path) as new:
        save_file(tensors, new, metadata={"step": str(step)})


def load_checkpoint(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore what :func:`save_checkpoint` wrote; return the number of finished steps."""
    with safe_open(path, framework="pt") as file, torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(file.get_tensor(f"weight.{name}"))
            optimizer.state[parameter] = {
                key: file.get_tensor(f"{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")
            }
        return int(file.metadata()["step"])


def train(folder: Path, tokens_per_parameter: float, seed: int = 0, every: int = 500, compiled: bool = True) -> None:
    """Train in ``folder``, or go on training; at the end, write the finished model in bf16 beside the checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    modules = corpus.training_modules()
    tokenizer_file = folder / "tokenizer.json"
    if not tokenizer_file.exists():
        train_tokenizer(modules + corpus.training_sessions(2000, seed)).save(str(tokenizer_file))
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    batches = Batches(tokenizer, modules, seed)
    model = new_model(seed).to(device)
    parameters = sum(p.numel() for p in model.parameters())
    steps = round(tokens_per_parameter * parameters / (BATCH * CONTEXT))
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    checkpoint = folder / "checkpoint.safetensors"
    done = load_checkpoint(checkpoint, model, optimizer) if checkpoint.exists() else 0

    def loss_of(tokens: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, dtype=torch.bfloat16):
            logits = model(tokens[:, :-1], use_cache=False).logits
        return cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())

    step_loss = torch.compile(loss_of) if compiled else loss_of
    progress = tqdm(range(done, steps), initial=done, total=steps, desc="training", mininterval=5)
    recent = []
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        loss = step_loss(batches.at(step).to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent.append(loss.item())
        if (step + 1) % every == 0 or step + 1 == steps:
            progress.write(f"step {step + 1}: loss {np.mean(recent[-every:]):.4f}")
            save_checkpoint(checkpoint, step + 1, model, optimizer)
    finish(folder, model, tokenizer, tokens=steps * BATCH * CONTEXT, code=len(batches.code), seed=seed)


def finish(folder: Path, model: LlamaForCausalLM, tokenizer: Tokenizer, **card: int) -> None:
    """Write the files that ship: the model in bf16, its tokenizer, and the facts of the run in ``training.json``."""
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)
    fast.model_max_length = CONTEXT
    model.to(torch.bfloat16).save_pretrained(folder / "finished")
    fast.save_pretrained(folder / "finished")
    (folder / "finished" / "training.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder for the checkpoints and the finished model")
    parser.add_argument("--tokens-per-parameter", type=float, default=90)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train(arguments.folder, arguments.tokens_per_parameter, arguments.seed)
