"""An engine: requests come at any time, and each step reads a part of many of them and writes a token for most.

Token for token, the engine writes the same as greedy ``model.generate``, whichever other requests are served at the
same time; only sums are added in another order. It runs every model that transformers' layers can run, float or packed,
on the model's own device.

Left out: penalties and top-k of ``generation_config``, beams, and requests that leave before they are finished. Layers
that look at the whole batch (LLM.int8's outliers) see other users' tokens, and may write something else than for one
text alone. If the keys of a text overflow, infinities stay in its blocks and spoil the next text that gets these
blocks.
"""

from collections.abc import Callable, Iterator, Mapping

import torch

from qtutor.errors import QtutorError
from qtutor.families import family_of
from qtutor.guards.ids import ids_of
from qtutor.guards.running import check_measurable, in_eval
from qtutor.measure.generation import prompt_tokens, room_behind, text_ends
from qtutor.serving.attention import Step, attending_over_blocks
from qtutor.serving.cache import BLOCK, Blocks, Pool
from qtutor.serving.scheduler import Piece, Request, Scheduler

CHANGING_ROPES = ("dynamic", "longrope")


class Engine:
    """Serves a decoder. :meth:`add` requests, and call :meth:`step` or iterate over :meth:`stream`.

    tokenizer: needed for prompts that are texts. blocks: how many blocks of ``block_size`` tokens the cache has.
    tokens_a_step: the most tokens that the model reads at once. share_prefixes: texts that begin alike share blocks.
    pool: creates the tensors of the blocks; called like :class:`Pool`.
    """

    def __init__(
        self,
        model,
        tokenizer=None,
        *,
        blocks: int = 256,
        block_size: int = BLOCK,
        tokens_a_step: int = 256,
        share_prefixes: bool = True,
        pool: Callable[..., Pool] = Pool,
    ):
        check_measurable(model)
        family_of(model)
        _check_rope(model.config)
        for name, value in (("blocks", blocks), ("block_size", block_size), ("tokens_a_step", tokens_a_step)):
            _check_count(name, value)
        self.model, self.tokenizer = model, tokenizer
        self.blocks = Blocks(blocks, block_size, share_prefixes)
        self.pool = pool(model.config, blocks, block_size, model.dtype, model.device)
        self.scheduler = Scheduler(self.blocks, tokens_a_step)
        self._added = 0

    def add(self, prompt, max_new_tokens: int = 64, temperature: float = 0.0, seed: int = 0) -> Request:
        """Add a prompt, a text or token ids, to the waiting requests. New tokens appear in its ``output``.

        The output ends with a token that ends texts, after ``max_new_tokens``, or at the end of the model's context.
        temperature: 0 chooses the likeliest token; above 0, tokens are drawn with ``seed``, whichever other requests
        are served. Raises :class:`QtutorError` for an invalid prompt, and for one that does not fit into all blocks
        together.
        """
        _check_count("max_new_tokens", max_new_tokens)
        if type(temperature) not in (int, float) or not 0 <= temperature < float("inf"):
            raise QtutorError(f"temperature is {temperature!r}; expected a number, 0 (the likeliest token) or more.")
        if type(seed) is not int or not 0 <= seed < 2**63:
            raise QtutorError(f"seed is {seed!r}; expected a whole number, at least 0 and of at most 63 bits.")
        tokens = self._tokens(prompt)
        room = room_behind(self.model, len(tokens))
        new = max_new_tokens if room is None else min(max_new_tokens, room)
        self._check_fits(len(tokens), new)
        generator = torch.Generator().manual_seed(seed) if temperature else None
        request = Request(self._added, tokens, new, temperature, generator)
        self._added += 1
        self.scheduler.add(request)
        return request

    @property
    def unfinished(self) -> int:
        """How many requests are running or waiting."""
        return len(self.scheduler.running) + len(self.scheduler.waiting)

    def step(self) -> list[tuple[Request, int]]:
        """Pick, run, sample, hand out: returns each request that got a token in this step, with the token.

        The list is empty if the step only read beginnings of prompts, or if no request is left. After an error all
        requests wait again with the tokens that they have, and the next step goes on.
        """
        try:
            pieces = self.scheduler.pick()
            if not pieces:
                return []
            tokens = _sample(self._run(pieces), pieces)
        except BaseException:  # also a request to stop (Ctrl-C): blocks may be written in part
            self.scheduler.abandon()
            raise
        return self._hand_out(pieces, tokens)

    def stream(self) -> Iterator[tuple[Request, int]]:
        """Run steps until no request is left: each request with its next token. Requests may be added meanwhile."""
        while self.unfinished:
            yield from self.step()

    def _run(self, pieces: list[Piece]) -> torch.Tensor:
        """The logits behind each piece, ``[pieces, vocabulary]``."""
        step = Step(self.pool, pieces)
        with torch.inference_mode(), in_eval(self.model), attending_over_blocks(self.model):
            written = self.model(
                step.ids,
                position_ids=step.positions,
                use_cache=False,
                logits_to_keep=step.ends,  # the output matrix is the largest: skip it for the rest of a prompt
                step=step,
            )
        return written.logits[0]

    def _hand_out(self, pieces: list[Piece], tokens: list[int | None]) -> list[tuple[Request, int]]:
        ends, given = text_ends(self.model), []
        for piece, token in zip(pieces, tokens, strict=True):
            request = piece.request
            request.cached = piece.end  # its keys and values are in the blocks
            if token is None:
                continue
            request.tokens.append(token)
            given.append((request, token))
            if token in ends or len(request.output) == request.max_new_tokens:
                self.scheduler.finish(request)
        return given

    def _tokens(self, prompt) -> list[int]:
        """The token ids of a prompt; raises :class:`QtutorError` if there are none or the model does not embed them."""
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise QtutorError("the prompt is a text, which needs the tokenizer: Engine(model, tokenizer, ...).")
            return prompt_tokens(self.model, self.tokenizer, prompt)
        ids = ids_of(prompt)
        if ids.dim() == 2 and len(ids) == 1:
            ids = ids[0]
        vocabulary = self.model.config.vocab_size
        if ids.dim() != 1 or ids.is_floating_point() or ids.dtype == torch.bool or not len(ids):
            raise QtutorError(
                f"the prompt is {ids.dtype} {list(ids.shape)}; expected the whole numbers of one text, [tokens]. "
                "Several prompts: add each."
            )
        if not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
            wrong = next(number for number in ids.tolist() if not 0 <= number < vocabulary)
            raise QtutorError(f"the prompt has the token {wrong}, and the model embeds 0 to {vocabulary - 1}.")
        return ids.tolist()

    def _check_fits(self, prompt: int, new: int) -> None:
        """Refuse a prompt that would wait for ever. The last token is returned and never read, so it needs no place."""
        needed, count = self.blocks.needed(prompt + new - 1), len(self.blocks.users)
        if needed > count:
            raise QtutorError(
                f"a prompt of {prompt} tokens and up to {new} new ones need {needed} blocks of {self.blocks.size} "
                f"tokens, and the cache has {count}: give the engine blocks={needed} or more, or ask for fewer tokens."
            )


def _sample(logits: torch.Tensor, pieces: list[Piece]) -> list[int | None]:
    """For each row of logits the likeliest token, or one that is drawn; ``None`` if a prompt is not yet read."""
    tokens = logits.argmax(-1).tolist()
    for row, piece in enumerate(pieces):
        if not piece.writes:
            tokens[row] = None
        elif piece.request.generator is not None:
            shares = torch.softmax(logits[row].float().cpu() / piece.request.temperature, 0)
            tokens[row] = int(torch.multinomial(shares, 1, generator=piece.request.generator))
    return tokens


def _check_count(name: str, value) -> None:
    if type(value) is not int or value < 1:
        raise QtutorError(f"{name} is {value!r}; expected a whole number, at least 1.")


def _check_rope(config) -> None:
    """Refuse a rope whose angles change for all texts when one is long: a text would depend on the others."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {part.get("rope_type") for part in (rope, *rope.values()) if isinstance(part, Mapping)}
    changing = sorted(kinds.intersection(CHANGING_ROPES))
    if changing:
        raise QtutorError(
            f"the model's rope is of type {changing[0]!r}, whose angles change for all texts of a batch when one of "
            "them is long: its texts cannot be served together. Use qtutor.generate."
        )
