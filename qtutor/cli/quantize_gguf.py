"""`qtutor quantize SRC OUT.gguf`: a file for llama.cpp.

GGUF's types determine the rounding; options of a recipe are refused, not ignored. But AWQ can come before the rounding,
an importance matrix, measured or read, can guide it, and a size instead of a type gives each matrix a type of its own.
"""

from collections import Counter

from qtutor.cli.calibrating import calibration_of, check_calibration
from qtutor.cli.quantize import OF_A_RECIPE, check_out
from qtutor.cli.source import check_file, load
from qtutor.cli.terminal import passes
from qtutor.errors import QtutorError
from qtutor.formats.gguf import DEFAULT
from qtutor.gguf import TYPES, imatrix
from qtutor.gguf.mixes import ALIASES, MIXES, find_mix
from qtutor.methods.rounders import Nearest
from qtutor.recipe import METHODS

BUDGET = ("bits", "target_size")  # the options of a recipe that GGUF accepts, too
NOT_IN_OLLAMA = ("TQ1_0", "TQ2_0", "MXFP4", "NVFP4", "Q1_0", "Q2_0")  # its releases support these late or not at all


def write(options) -> int:
    """Encode the decoder as a GGUF file, with AWQ's scales, importance or types of its own if options request them."""
    import qtutor
    from qtutor.calibration.chat import has_template
    from qtutor.methods.scaling import fold_model
    from qtutor.report import next_steps

    budget = {name: getattr(options, name) for name in BUDGET}
    budgeted = any(value is not None for value in budget.values())
    mix = type_of(options)
    _refuse(options)
    awq = bool(METHODS[options.method].transforms)
    given = _imatrix(options)
    reads = awq or budgeted or options.calibration is not None
    check_calibration(options, reads, "--format gguf without --method awq")
    bits = TYPES["Q2_K" if budgeted else find_mix(mix or DEFAULT).base].bits_per_weight
    check_out(options, bits)
    if options.plan and not budgeted:
        print(_plan(*_opened(options), mix, guided=given is not None or reads))
        return 0
    model, tokenizer = load(options, dtype="auto")
    check_out(options, bits, model)
    tokens = calibration_of(options, model, tokenizer, always=True) if reads else None
    types = _types(model, tokenizer, tokens, given, budget) if budgeted else None
    if options.plan:
        print(_plan(model, tokenizer, None, types))
        return 0
    if awq:
        fold_model(model, tokens)
    if awq or options.calibration:
        with passes(model.base_model, "measuring importance", -(-len(tokens) // 8)):
            given = imatrix.importance(model, tokens, options.calibration or "qtutor")
    chosen = {"type": mix, "types": types, "importance": given, "overwrite": options.force}
    path = qtutor.export(model, options.out, format="gguf", tokenizer=tokenizer, **chosen)
    print(f"Written to {path}, {path.stat().st_size:,} bytes.\n")
    ollama = find_mix(mix or DEFAULT).base not in NOT_IN_OLLAMA
    print(next_steps(str(path), options.source, has_template(tokenizer), ollama))
    return 0


def _opened(options):
    """A model of shapes without weights, and its tokenizer."""
    from qtutor.formats.streamed import opened

    weights, tokenizer = opened(options.source)
    return weights.model, tokenizer


def _types(model, tokenizer, tokens, importance, budget: dict) -> dict[str, str]:
    """A block type for each matrix, for --target-size or --bits; prints how many matrices get each type."""
    from qtutor.budget.block_types import choose

    types = choose(model, tokens, tokenizer, importance=importance, **budget)
    counts = ", ".join(f"{kind} {count}" for kind, count in Counter(types.values()).most_common())
    print(f"Types: those that cost this model least at this size ({counts}).", flush=True)
    return types


def _plan(model, tokenizer, mix: str | None, types: dict[str, str] | None = None, guided: bool = False) -> str:
    """The contents of the file, from shapes alone."""
    from qtutor.formats.gguf import planned

    sizes = planned(model, tokenizer, type=mix or DEFAULT, types=types, guided=guided)
    header = sizes.pop("header")
    rows = [*sorted(sizes.items(), key=lambda item: -item[1]), ("header", header)]
    of_types = "\n".join(f"  {kind:6}  {nbytes:14,} bytes" for kind, nbytes in rows)
    what = f"of the type {mix or DEFAULT}" if types is None else "with a type of its own for every matrix"
    of_each = "" if types is None else "\n".join(f"  {name:28}  {kind}" for name, kind in types.items()) + "\n\n"
    return (
        f"Plan: one GGUF file for llama.cpp, {what}.\n\n{of_each}{of_types}\n\n"
        "Format: gguf. Its types say how weights are rounded, so there is no recipe.\n"
        f"Result: {sum(sizes.values()) + header:,} bytes."
    )


def type_of(options) -> str | None:
    """--type in llama.cpp's spelling, upper or lower case."""
    if options.type is None:
        return None
    spelled = {name.lower(): name for name in (*ALIASES, *MIXES)}.get(options.type.lower(), options.type)
    find_mix(spelled)  # refuses an unknown mix
    return spelled


def _refuse(options) -> None:
    """Refuse options that only a recipe has, and two sources of importance."""
    method = METHODS.get(options.method)
    if method is None or method.codebook or method.rounder is not Nearest:  # the types round: no method may
        raise QtutorError(
            f"--method {options.method} does not go with --format gguf, whose --type says how weights are rounded: "
            "leave it out, or choose awq, which scales weights before they are rounded."
        )
    for name in BUDGET:
        if getattr(options, name) is not None and options.type is not None:
            raise QtutorError(
                f"--{name.replace('_', '-')} chooses a block type for every matrix, and --type {options.type} names "
                "them: leave one out."
            )
    for name in OF_A_RECIPE:
        if name not in BUDGET and getattr(options, name) != options.parser.get_default(name):
            raise QtutorError(
                f"--{name.replace('_', '-')} does not go with --format gguf, whose --type says how weights are "
                "rounded: leave it out."
            )
    other = "--calibration" if options.calibration else None
    other = f"--method {options.method}" if method.transforms else other
    if options.imatrix is not None and other:
        raise QtutorError(
            f"--imatrix does not go with {other}, which measures an importance matrix of its own: leave one out."
        )


def _imatrix(options) -> imatrix.Imatrix | None:
    if options.imatrix is None:
        return None
    check_file(options.imatrix, "--imatrix")
    return imatrix.read(options.imatrix)
