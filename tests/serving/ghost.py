"""An engine without a model: blocks hold token ids, and the next token is a function of the text in the blocks.

So a test notices at once if a text reads something else than itself. It takes a thousandth of a decoder's time.
"""

import zlib
from array import array

import torch

from qtutor.serving import Engine
from tests.models import VOCABULARY

ENDS = range(8)  # one in 32 tokens ends a text


def next_token(text: list[int]) -> int:
    """A number that depends on each token of the text and on their order."""
    return zlib.crc32(array("q", text).tobytes()) % VOCABULARY


def written(prompt: list[int], new: int) -> list[int]:
    """The tokens after a prompt: at most ``new``, or fewer if one of them ends the text."""
    text = list(prompt)
    while len(text) < len(prompt) + new:
        text.append(next_token(text))
        if text[-1] in ENDS:
            break
    return text[len(prompt) :]


class Ghost(Engine):
    """An engine whose cache holds ``(token, position)`` in each place. failing: which runs fail half-way."""

    def __init__(self, model, failing=(), **sizes):
        super().__init__(model, **sizes)
        self.memory = [[None] * self.blocks.size for _ in self.blocks.users]
        self.failing, self.runs = failing, 0
        self.lengths = []  # tokens read, for each run

    def _run(self, pieces):
        self.runs += 1
        self.lengths.append(sum(piece.end - piece.start for piece in pieces))
        assert self.lengths[-1] <= self.scheduler.budget
        assert all(piece.start < piece.end for piece in pieces)
        places = set()
        for piece in pieces:
            for position in range(piece.start, piece.end):
                place = self._place(piece, position)
                assert place not in places, "two texts write into one place"
                places.add(place)
                if self.runs in self.failing and len(places) > 1:
                    raise RuntimeError("the power is gone")
                self.memory[place[0]][place[1]] = (piece.request.tokens[position], position)
        logits = torch.zeros(len(pieces), VOCABULARY)
        for row, piece in enumerate(pieces):
            places = [self._place(piece, position) for position in range(piece.end)]
            found = [self.memory[block][place] for block, place in places]
            text = [token for token, _ in found]
            assert found == [(token, at) for at, token in enumerate(piece.request.tokens[: piece.end])]
            logits[row, next_token(text)] = 1
        return logits

    def _place(self, piece, position: int) -> tuple[int, int]:
        return piece.request.table[position // self.blocks.size], position % self.blocks.size
