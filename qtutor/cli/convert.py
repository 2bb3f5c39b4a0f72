"""`qtutor convert`: a quantized checkpoint in another format, without rounding it again."""

from qtutor.cli.parsing import DEVICE
from qtutor.cli.source import check_device, check_source
from qtutor.formats import ENGINES, FORMATS

EXAMPLES = [
    "convert path/to/llama-gptq out --format compressed-tensors",
    "convert out out-vllm --target vllm",
    "convert model-Q8_0.gguf out --target transformers",
]


def add_to(command) -> None:
    """Add ``convert`` to the commands; ``command`` creates its parser."""
    description = "Convert a quantized checkpoint into another format: the same codes and scales, not rounded again."
    sub = command(convert, "convert", description, EXAMPLES)
    held = "a quantized folder (ours, GPTQ, AWQ, compressed-tensors, bitsandbytes, ModelOpt, MLX), a hub id of one, or"
    sub.add_argument("source", metavar="SRC", help=f"{held} a GGUF file of Q4_0, Q5_0, Q6_K or Q8_0")
    sub.add_argument("out", metavar="OUT", help="the folder to write")
    sub.add_argument("--format", type=str.lower, choices=list(FORMATS), help="the layout of OUT")
    target = "the engine that is to read OUT: picks the format, and says which layers it would not take"
    sub.add_argument("--target", type=str.lower, choices=list(ENGINES), help=target)
    version = "with gptq: how zero points are stored (default: 1 for symmetric layers, 2 for others)"
    sub.add_argument("--gptq-version", type=int, choices=[1, 2], help=version)
    sub.add_argument("--device", help=DEVICE)


def convert(options) -> int:
    """``qtutor convert``: load packed layers, and export them."""
    from qtutor.calibration.chat import has_template
    from qtutor.formats import FOREIGN, converting
    from qtutor.formats.taking import commands
    from qtutor.report import next_steps

    check_source(options.source)
    device = check_device(options.device)
    choices = options.format, options.target, device, options.gptq_version
    model, tokenizer, form = converting.convert(options.source, options.out, *choices)
    more = commands(options.out, form, model) if form in FOREIGN else {}
    print(f"Written to {options.out} in the format {form}: the codes, scales and zero points of {options.source}.\n")
    print(next_steps(options.out, options.source, has_template(tokenizer), more=more))
    return 0
