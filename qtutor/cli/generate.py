"""`qtutor generate`: a decoder continues a text, or answers in a chat; its tokens are printed as they come."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from qtutor.cli.parsing import add_source
from qtutor.cli.source import load
from qtutor.cli.terminal import paragraph
from qtutor.errors import QtutorError

EXAMPLES = [
    "generate embedded 'def mean(values):'",
    "generate out '>>> 37 + 48' --max-new-tokens 8",
    "generate path/to/llama-instruct 'Why is the sky blue?' --chat",
    "generate path/to/llama-instruct --chat    # a conversation; Ctrl-D ends it",
]
CONTINUED, ANSWERED = 64, 256  # tokens at most


def add_to(command) -> None:
    """Add ``generate`` to the commands; ``command`` makes one."""
    sub = command(generate, "generate", "Let a decoder continue a text, or answer in a chat.", EXAMPLES)
    add_source(sub)
    text = "what the decoder continues or, with --chat, answers; with --chat it may be left out: questions come from "
    text += "the keyboard, or one on each line of stdin, each the beginning of a new conversation"
    sub.add_argument("text", nargs="?", help=text)
    sub.add_argument("--chat", action="store_true", help="ask through the model's chat template, and print the answer")
    most = f"at most so many (default: {CONTINUED}, with --chat {ANSWERED})"
    sub.add_argument("--max-new-tokens", type=int, metavar="N", help=most)


def generate(options) -> int:
    """``qtutor generate``: how a model goes on with a prompt, or what it answers."""
    if options.max_new_tokens is not None and options.max_new_tokens < 1:
        raise QtutorError(f"--max-new-tokens is {options.max_new_tokens}; it has to be at least 1.")
    if options.text is None and not options.chat:
        raise QtutorError(
            "the text is missing that SRC shall continue: give it behind SRC, or --chat for a conversation."
        )
    model, tokenizer = load(options)
    if options.chat:
        return _chat(options, model, tokenizer)
    import qtutor
    from qtutor.measure.generation import prompt_tokens, room_behind, text_ends

    room_behind(model, len(prompt_tokens(model, tokenizer, options.text)))  # refuses before anything is printed
    print(options.text, end="", flush=True)
    streamer = Streamer(tokenizer, text_ends(model), show)
    qtutor.generate(model, tokenizer, options.text, options.max_new_tokens or CONTINUED, streamer)
    print()
    return 0


def _chat(options, model, tokenizer) -> int:
    """One answer; or one to each question, of a person in one conversation, of a file in a new one each time."""
    from qtutor.calibration.chat import rendered

    with_person = options.text is None and sys.stdin is not None and sys.stdin.isatty()
    if with_person:
        with contextlib.suppress(ImportError):  # not there on Windows
            import readline  # noqa: F401 - from now on input() knows arrow keys
    rendered(tokenizer, [{"role": "user", "content": "?"}], ask=True)  # refuses a tokenizer without template
    if with_person:
        print("Ask; an empty line begins a new conversation, Ctrl-D ends.", file=sys.stderr)
    messages = []
    for question in [options.text] if options.text is not None else _questions(with_person):
        if not with_person or not question.strip():
            messages = []
        if not question.strip() and options.text is None:
            continue
        messages = _with_room(model, tokenizer, [*messages, {"role": "user", "content": question}])
        text = _answer(model, tokenizer, messages, options.max_new_tokens or ANSWERED)
        messages.append({"role": "assistant", "content": text})
    return 0


def _questions(with_person: bool) -> Iterator[str]:
    """Lines from the keyboard, each behind a "> ", or of stdin; the end of both ends it."""
    while True:
        try:
            yield input("> ") if with_person else input()
        except EOFError:
            if with_person:
                print()
            return
        except UnicodeDecodeError as error:
            raise QtutorError(f"stdin is no text in this terminal's encoding ({error.reason}): use UTF-8.") from None


def _answer(model, tokenizer, messages: list[dict[str, str]], most: int) -> str:
    """Print an answer while it is written, and return it."""
    from qtutor.measure.chat import answer, answer_ends

    streamer = Streamer(tokenizer, answer_ends(model, tokenizer), show)
    text = answer(model, tokenizer, messages, most, streamer)
    print(flush=True)
    return text


def _with_room(model, tokenizer, messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """``messages`` without the oldest questions and answers where the context has no room for an answer to them all."""
    from qtutor.measure.chat import conversation_tokens

    context = getattr(model.config, "max_position_embeddings", None)
    kept = messages
    while context is not None and len(kept) > 1 and len(conversation_tokens(model, tokenizer, kept)) + 64 > context:
        kept = kept[2:]
    if len(kept) < len(messages):
        paragraph("qtutor: the model's context is full, so it no longer knows the beginning of this conversation.")
    return kept


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
