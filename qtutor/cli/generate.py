"""`qtutor generate`: a decoder continues a text, which is printed while it is written."""

import sys
from collections.abc import Callable

from qtutor.cli.parsing import add_source
from qtutor.cli.source import load
from qtutor.errors import QtutorError


def add_to(command) -> None:
    """Add ``generate`` to the commands; ``command`` makes one."""
    examples = ["generate embedded 'def mean(values):'", "generate out '>>> 37 + 48' --max-new-tokens 8"]
    sub = command(generate, "generate", "Let a decoder continue a text.", examples)
    add_source(sub)
    sub.add_argument("text", help="what the decoder continues")
    sub.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="(default: %(default)s)")


def generate(options) -> int:
    """``qtutor generate``: how a model goes on with a prompt."""
    if options.max_new_tokens < 1:
        raise QtutorError(f"--max-new-tokens is {options.max_new_tokens}; it has to be at least 1.")
    import qtutor
    from qtutor.measure.generation import prompt_tokens, room_behind, text_ends

    model, tokenizer = load(options)
    room_behind(model, len(prompt_tokens(model, tokenizer, options.text)))  # refuses before anything is printed
    print(options.text, end="", flush=True)
    streamer = Streamer(tokenizer, text_ends(model), show)
    qtutor.generate(model, tokenizer, options.text, options.max_new_tokens, streamer)
    print()
    return 0


def show(text: str) -> None:
    """Print text as it comes."""
    sys.stdout.write(text)
    sys.stdout.flush()


class Streamer:
    """Hands a continuation to ``write`` piece by piece, whole characters only, while it is made; see :meth:`put`.

    A character may be several tokens. So all tokens are decoded each time, and an unfinished end is kept back.
    """

    def __init__(self, tokenizer, ends: list[int], write: Callable[[str], object]):
        self.tokenizer, self.ends, self.write = tokenizer, ends, write
        self.ids, self.written, self.begun = [], "", False

    def put(self, ids) -> None:
        """What transformers' ``generate`` calls: first with the prompt, then with each new token."""
        if self.begun:
            self.ids += ids.flatten().tolist()
            self._show(self._text().rstrip("\ufffd"))
        self.begun = True

    def end(self) -> None:
        self._show(self._text())

    def _text(self) -> str:
        from qtutor.measure.generation import before

        return self.tokenizer.decode(before(self.ends, self.ids), skip_special_tokens=True)

    def _show(self, text: str) -> None:
        if text.startswith(self.written) and text != self.written:
            self.write(text[len(self.written) :])
            self.written = text
