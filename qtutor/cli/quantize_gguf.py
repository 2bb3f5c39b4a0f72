"""`qtutor quantize SRC OUT.gguf`: a file for llama.cpp.

GGUF's types say how to round; what a recipe would say is refused, not ignored. But AWQ can come before it, and an
importance matrix, measured or read, can guide it.
"""

from qtutor.cli.calibrating import calibration_of, check_calibration
from qtutor.cli.quantize import OF_A_RECIPE, check_out
from qtutor.cli.source import check_file, load
from qtutor.cli.terminal import passes
from qtutor.errors import QtutorError
from qtutor.formats.gguf import DEFAULT
from qtutor.gguf import TYPES, imatrix
from qtutor.gguf.mixes import ALIASES, MIXES, find_mix

NOT_IN_OLLAMA = ("TQ1_0", "TQ2_0", "MXFP4")  # types that its releases take late or not at all


def write(options) -> int:
    """Encode the decoder as a GGUF file, with AWQ's scales or importance if the options ask for them."""
    import qtutor
    from qtutor.calibration.chat import has_template
    from qtutor.methods.scaling import fold_model
    from qtutor.report import next_steps

    awq = options.method == "awq"
    mix = type_of(options)
    _refuse(options)
    given = _imatrix(options)
    check_calibration(options, awq or options.calibration is not None, "--format gguf without --method awq")
    bits = TYPES[find_mix(mix or DEFAULT).base].bits_per_weight
    check_out(options, bits)
    if options.plan:
        print(_plan(options, mix, given is not None or awq or options.calibration is not None))
        return 0
    model, tokenizer = load(options, dtype="auto")
    check_out(options, bits, model)
    tokens = calibration_of(options, model, tokenizer, always=True) if awq or options.calibration else None
    if awq:
        fold_model(model, tokens)
    if tokens is not None:
        with passes(model.base_model, "measuring importance", -(-len(tokens) // 8)):
            given = imatrix.importance(model, tokens, options.calibration or "qtutor")
    chosen = {"type": mix, "importance": given, "overwrite": options.force}
    path = qtutor.export(model, options.out, format="gguf", tokenizer=tokenizer, **chosen)
    print(f"Written to {path}, {path.stat().st_size:,} bytes.\n")
    ollama = find_mix(mix or DEFAULT).base not in NOT_IN_OLLAMA
    print(next_steps(str(path), options.source, has_template(tokenizer), ollama))
    return 0


def _plan(options, mix: str | None, importance: bool) -> str:
    """What the file will hold, from shapes alone."""
    from qtutor.formats.gguf import planned
    from qtutor.formats.streamed import opened

    sizes = planned(opened(options.source)[0].model, mix, importance)
    of_types = "\n".join(
        f"  {kind:6}  {nbytes:14,} bytes" for kind, nbytes in sorted(sizes.items(), key=lambda i: -i[1])
    )
    return (
        f"Plan: one GGUF file for llama.cpp, of the type {mix or DEFAULT}.\n\n{of_types}\n\n"
        f"Format: gguf. Its types say how weights are rounded, so no recipe does.\n"
        f"Result: {sum(sizes.values()):,} bytes of tensors, and the tokenizer."
    )


def type_of(options) -> str | None:
    """--type as llama.cpp spells it, whatever the case."""
    if options.type is None:
        return None
    spelled = {name.lower(): name for name in (*ALIASES, *MIXES)}.get(options.type.lower(), options.type)
    find_mix(spelled)  # refuses what is none
    return spelled


def _refuse(options) -> None:
    """What only a recipe has, and two sources of importance."""
    if options.method not in ("rtn", "awq"):
        raise QtutorError(
            f"--method {options.method} does not go with --format gguf, whose --type says how weights are rounded: "
            "leave it out, or choose awq, which scales weights before they are."
        )
    if options.target_size is not None:
        raise QtutorError(
            "--target-size chooses bits for each layer of a folder of qtutor's. In a GGUF file the --type decides the "
            "size: take a smaller one, like Q3_K_M."
        )
    for name in OF_A_RECIPE:
        if getattr(options, name) != options.parser.get_default(name):
            raise QtutorError(
                f"--{name.replace('_', '-')} does not go with --format gguf, whose --type says how weights are "
                "rounded: leave it out."
            )
    other = "--method awq" if options.method == "awq" else "--calibration" if options.calibration else None
    if options.imatrix is not None and other:
        raise QtutorError(
            f"--imatrix does not go with {other}, which measures an importance matrix of its own: leave one out."
        )


def _imatrix(options) -> imatrix.Imatrix | None:
    if options.imatrix is None:
        return None
    check_file(options.imatrix, "--imatrix")
    return imatrix.read(options.imatrix)
