"""`qtutor doctor`: what is wrong with a checkpoint, and which engines can read it."""

from qtutor.cli.parsing import DEVICE
from qtutor.cli.source import check_device, check_source

EXAMPLES = [
    "doctor path/to/llama-gptq",
    "doctor path/to/llama-awq --against path/to/llama",
    "doctor out --json",
]


def add_to(command) -> None:
    """Add ``doctor`` to the commands; ``command`` creates its parser."""
    description = "Find out why a quantized checkpoint talks garbage, and which engines take it. Status 0: healthy; 1: "
    sub = command(doctor, "doctor", f"{description}findings; 2: bad input.", EXAMPLES)
    sub.add_argument("source", metavar="FOLDER", help="a quantized folder of any tool, or a GGUF file")
    against = "the float checkpoint that it was made of: zero points and orders are compared exactly"
    sub.add_argument("--against", metavar="FLOAT", help=against)
    sub.add_argument("--json", action="store_true", help="print JSON, and no text")
    sub.add_argument("--device", help=DEVICE)


def doctor(options) -> int:
    """``qtutor doctor``: 0 for a healthy checkpoint, 1 for one with findings."""
    from qtutor.cli.measuring import as_json
    from qtutor.doctor import examine
    from qtutor.errors import escaped

    for source in filter(None, (options.source, options.against)):
        check_source(source)
    found = examine(options.source, options.against, check_device(options.device))
    if options.json:
        print(as_json(found.as_dict()))
    else:
        print("\n".join(map(escaped, str(found).splitlines())))
    return 0 if found.healthy else 1
