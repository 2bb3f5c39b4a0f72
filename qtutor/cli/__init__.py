"""The command line: `qtutor learn | progress | quantize | convert | generate | eval | compare | inspect | doctor`.

Each command is a module. torch and transformers are imported inside the commands that need them, so that --help and
inspect do not wait for them. Bad input ends in one paragraph on stderr and exit status 2, an interrupt in one line and
130 (Ctrl-C), 143 (SIGTERM) or 129 (SIGHUP). An unexpected error also ends in one paragraph, with status 1;
QTUTOR_TRACEBACK=1 shows where it happened.
"""

import argparse
import os
import sys
import traceback

from qtutor.cli import compare, convert, course, doctor, evaluate, generate, inspect, quantize
from qtutor.cli.parsing import Parser, parser_with_examples
from qtutor.cli.terminal import paragraph, plain_output, warnings_in_words
from qtutor.errors import QtutorError
from qtutor.files.stopping import signals_raise


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    plain_output()
    _wait_little()
    options = build_parser().parse_args(argv)
    with warnings_in_words(), signals_raise() as asked:
        try:
            status = options.run(options)
            sys.stdout.flush()  # a full disk is reported here, not by the interpreter at the end
            return status
        except (SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # a panic in Rust code is a PanicException, which is no Exception
            # After a request to stop, any error can be its result: a library caught the request and raised its own.
            return _status(asked[-1] if asked else error)


def _wait_little() -> None:
    """Have torch's threads sleep early when they wait for one another.

    By default a waiting thread checks again and again for a millisecond. If other work needs the core, the thread that
    it waits for cannot run meanwhile. Beside one busy process, SmolLM2 wrote 2 tokens a second by default, and writes 8
    with this setting. Alone it is as fast as before. If the user has set OMP_WAIT_POLICY or GOMP_SPINCOUNT, they stay.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # read when torch is imported


def _status(error: BaseException) -> int:
    """Print an error message, if there is an error; returns the exit status."""
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `qtutor inspect FILE | head` is no error
        return 0
    if isinstance(error, KeyboardInterrupt):
        print("\nqtutor: stopped.", file=sys.stderr)
        return getattr(error, "status", 130)
    if isinstance(error, QtutorError | OSError):
        paragraph(f"qtutor: {error}")
        return 2
    if os.environ.get("QTUTOR_TRACEBACK"):
        raise error
    paragraph(f"qtutor: {_unforeseen(error)}")
    return 1


def build_parser() -> Parser:
    """The parser of all commands. It imports nothing heavy, so that --help and mistakes are answered at once."""
    parser = parser_with_examples(
        Parser,
        "Learn how language models are quantized, and quantize them.",
        ["learn", "quantize embedded out --bits 3", "eval out", "generate out 'def mean(values):'", "inspect out"],
        prog="qtutor",
    )
    parser.add_argument("--version", action=_Version, help="print the version, and nothing else")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(run, name, description, examples):
        sub = parser_with_examples(commands.add_parser, description, examples, name=name, help=description)
        sub.set_defaults(run=run, parser=sub)
        return sub

    for module in (course, quantize, convert, generate, evaluate, compare, inspect, doctor):
        module.add_to(command)
    return parser


class _Version(argparse.Action):
    """``--version``, looked up only if the option is given."""

    def __init__(self, option_strings, dest, help):
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser, namespace, values, option_string=None):
        from importlib.metadata import version

        print(f"qtutor {version('qtutor')}")
        parser.exit()


def _unforeseen(error: BaseException) -> str:
    """One sentence for an exception that is no :class:`QtutorError`: its message, and where it came from."""
    said = " ".join(str(error).split())[:300]
    if isinstance(error, MemoryError) or "out of memory" in said.lower() or "can't allocate memory" in said:
        return f"there is not enough memory ({said or 'MemoryError'}). Choose a smaller model, or fewer --samples."
    place = traceback.extract_tb(error.__traceback__)[-1]
    at = f"{os.path.basename(place.filename)}, line {place.lineno}"
    return (
        f"{type(error).__name__}: {said or 'no message'} ({at}). That was not foreseen, so it is a mistake in qtutor: "
        "please report it. QTUTOR_TRACEBACK=1 shows where it happened."
    )
