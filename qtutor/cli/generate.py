"""`qtutor generate`: a decoder continues a text, or answers in a chat; its tokens are printed as they come."""

import contextlib
import sys
import time
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
    "generate path/to/llama-instruct --chat --cache int4    # keys and values of long texts in 4 bits",
]
CONTINUED, ANSWERED = 64, 256  # the most tokens that are written
CACHES = {  # benchmarks/kv_cache.md lists their cost
    "int8": {"bits": 8, "rotate": True},
    "int4": {"bits": 4, "keys": "channel"},
    "fp8": {"bits": "fp8"},
}


def add_to(command) -> None:
    """Add ``generate`` to the commands; ``command`` creates its parser."""
    sub = command(generate, "generate", "Let a decoder continue a text, or answer in a chat.", EXAMPLES)
    add_source(sub)
    text = "what the decoder continues or, with --chat, answers; with --chat it may be left out: questions come from "
    text += "the keyboard, or one on each line of stdin, each the beginning of a new conversation"
    sub.add_argument("text", nargs="?", help=text)
    sub.add_argument("--chat", action="store_true", help="ask through the model's chat template, and print the answer")
    most = f"write at most N tokens (default: {CONTINUED}, with --chat {ANSWERED})"
    sub.add_argument("--max-new-tokens", type=int, metavar="N", help=most)
    speed = (
        "say on stderr how fast the text came, and how near that is to what memory allows (a terminal gets it anyway)"
    )
    sub.add_argument("--cache", choices=CACHES, help="store keys and values in this format (default: not rounded)")
    sub.add_argument("--speed", action="store_true", help=speed)


def generate(options) -> int:
    """``qtutor generate``: the model's continuation of a prompt, or its answer."""
    if options.max_new_tokens is not None and options.max_new_tokens < 1:
        raise QtutorError(f"--max-new-tokens is {options.max_new_tokens}; it has to be at least 1.")
    if options.text is None and not options.chat:
        raise QtutorError("the text is missing: write it after SRC; or use --chat for a conversation.")
    model, tokenizer = load(options)
    if options.chat:
        return _chat(options, model, tokenizer)
    import qtutor
    from qtutor.measure.generation import prompt_tokens, room_behind, text_ends

    room_behind(model, len(prompt_tokens(model, tokenizer, options.text)))  # refuses before anything is printed
    print(options.text, end="", flush=True)
    watch, streamer = Watch(options, model), Streamer(tokenizer, text_ends(model), show)
    qtutor.generate(model, tokenizer, options.text, options.max_new_tokens or CONTINUED, streamer, cache_of(options))
    print(flush=True)
    watch.say(streamer)
    return 0


def cache_of(options):
    """The format of keys and values that the options name, or ``None``."""
    from qtutor.runtime.kv import KVFormat

    return KVFormat(**CACHES[options.cache]) if options.cache else None


class Watch:
    """Prints on stderr how fast texts came, if stderr is a terminal or an option requests it."""

    def __init__(self, options, model):
        from qtutor.measure.speed import bytes_of_a_token

        self.wanted = options.speed or sys.stderr.isatty()
        self.model = model
        # Computed beforehand: listing a model's tensors takes packed bytes back from the kernels that have them.
        self.size = bytes_of_a_token(model) if self.wanted else 0

    def say(self, streamer: "Streamer") -> None:
        from qtutor.measure.speed import pace

        if self.wanted and streamer.came:
            paragraph(f"qtutor: {pace(self.size, self.model.device, streamer.asked, streamer.came)}")


def _chat(options, model, tokenizer) -> int:
    """One answer; or one to each question: a person has one conversation, each line of a file starts a new one."""
    from qtutor.calibration.chat import rendered

    with_person = options.text is None and sys.stdin is not None and sys.stdin.isatty()
    if with_person:
        with contextlib.suppress(ImportError):  # Windows does not have it
            import readline  # noqa: F401 - from now on input() knows arrow keys
    rendered(tokenizer, [{"role": "user", "content": "?"}], ask=True)  # refuses a tokenizer without template
    if with_person:
        print("Ask; an empty line begins a new conversation, Ctrl-D ends.", file=sys.stderr)
    messages, watch = [], Watch(options, model)
    for question in [options.text] if options.text is not None else _questions(with_person):
        if not with_person or not question.strip():
            messages = []
        if not question.strip() and options.text is None:
            continue
        messages = _with_room(model, tokenizer, [*messages, {"role": "user", "content": question}])
        text = _answer(watch, tokenizer, messages, options.max_new_tokens or ANSWERED, cache_of(options))
        messages.append({"role": "assistant", "content": text})
    return 0


def _questions(with_person: bool) -> Iterator[str]:
    """Lines from the keyboard, each after a "> ", or lines of stdin; until the end of the input."""
    while True:
        try:
            yield input("> ") if with_person else input()
        except EOFError:
            if with_person:
                print()
            return
        except UnicodeDecodeError as error:
            raise QtutorError(f"stdin is no text in this terminal's encoding ({error.reason}): use UTF-8.") from None


def _answer(watch: Watch, tokenizer, messages: list[dict[str, str]], most: int, cache) -> str:
    """Print an answer while it is written, and return it."""
    from qtutor.measure.chat import answer, answer_ends

    streamer = Streamer(tokenizer, answer_ends(watch.model, tokenizer), show)
    text = answer(watch.model, tokenizer, messages, most, streamer, cache)
    print(flush=True)
    watch.say(streamer)
    return text


def _with_room(model, tokenizer, messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """``messages`` without the oldest questions and answers if the context has no room for another answer."""
    from qtutor.measure.chat import conversation_tokens

    context = getattr(model.config, "max_position_embeddings", None)
    kept = messages
    while context is not None and len(kept) > 1 and len(conversation_tokens(model, tokenizer, kept)) + 64 > context:
        kept = kept[2:]
    if len(kept) < len(messages):
        paragraph("qtutor: the model's context is full, so it no longer knows the beginning of this conversation.")
    return kept


def show(text: str) -> None:
    """Print text as soon as it comes."""
    sys.stdout.write(text)
    sys.stdout.flush()


class Streamer:
    """Passes a continuation to ``write`` piece by piece, only whole characters, while it is computed; see :meth:`put`.

    A character may be several tokens. So all tokens are decoded each time, and an unfinished end is kept back.
    asked, came: when the prompt and each token came, in seconds.
    """

    def __init__(self, tokenizer, ends: list[int], write: Callable[[str], object]):
        self.tokenizer, self.ends, self.write = tokenizer, ends, write
        self.ids, self.written, self.begun = [], "", False
        self.asked, self.came = 0.0, []

    def put(self, ids) -> None:
        """Called by transformers' ``generate``: first with the prompt, then with each new token."""
        if not self.begun:
            self.asked = time.perf_counter()
        else:
            self.came.append(time.perf_counter())
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
