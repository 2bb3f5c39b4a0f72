"""The float checkpoints that all quantizers get, and the calibration tokens, as files in the cache folder.

* ``embedded``: the embedded decoder (grouped-query attention, tied embeddings), in float32.
* ``second``: a decoder of another shape (four narrow blocks; as many key-value heads as heads, so that AWQ's pair
  v -> o exists; its own output matrix), random-initialised and trained for about a minute on the same text.
* ``large``: random weights, hidden 1024, intermediate 2816, 8 blocks; it is only used to measure time and memory.

    python benchmarks/peers/decoders.py embedded|second|large gptq|awq
"""

import argparse
from pathlib import Path

import torch
from launch import CACHE
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import qtutor
from qtutor.decoder import EMBEDDED, corpus, training
from qtutor.decoder.text import calibration_tokens

CHECKPOINTS = CACHE / "checkpoints"
STEPS = 240
WARMUP = 40
LEARNING_RATE = 4e-3
LARGE_VOCABULARY = 4096


def folder_of(name: str) -> Path:
    """The folder with the checkpoint of decoder ``name``; made if it is missing."""
    folder = CHECKPOINTS / name
    if not folder.exists():
        beside = folder.with_suffix(".partial")
        MAKERS[name]().float().save_pretrained(beside)
        AutoTokenizer.from_pretrained(EMBEDDED).save_pretrained(beside)
        beside.rename(folder)
    return folder


def tokens_of(name: str, method: str) -> Path:
    """A file with ``token_ids [samples, length]`` to calibrate decoder ``name``; made if it is missing."""
    samples = 128 if (name, method) == ("embedded", "gptq") else 32  # fewer if the peers take long
    path = CHECKPOINTS / (f"random-{samples}.safetensors" if name == "large" else f"text-{samples}.safetensors")
    if not path.exists():
        generator = torch.Generator().manual_seed(0)
        random = torch.randint(0, LARGE_VOCABULARY, (samples, 256), generator=generator)
        save_file({"token_ids": random if name == "large" else calibration_tokens(samples)}, path)
    return path


def embedded() -> torch.nn.Module:
    return qtutor.load_decoder(device="cpu")[0]


def second() -> torch.nn.Module:
    """The same weights in every run on one machine: everything is seeded, and one thread adds up in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=training.VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=training.CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    tokenizer = training.Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
    batches = training.Batches(tokenizer, corpus.training_modules(), seed=0, sessions=2000)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for step in (progress := tqdm(range(STEPS), "training")):
        rate = LEARNING_RATE * min(1.0, (step + 1) / WARMUP, (STEPS - step) / (STEPS - WARMUP))
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids = batches.at(step)[:, : training.CONTEXT // 2 + 1]  # short windows: more steps in the same time
        logits = model(ids[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        progress.set_postfix(loss=f"{loss.item():.2f}")
    torch.set_num_threads(threads)
    return model.eval()


def large() -> torch.nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=LARGE_VOCABULARY,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


MAKERS = {"embedded": embedded, "second": second, "large": large}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=MAKERS)
    parser.add_argument("method", choices=["gptq", "awq"])
    options = parser.parse_args()
    print(folder_of(options.name), tokens_of(options.name, options.method), sep="\n")
