"""Why a compiled loop is slow: what its types, its strides and its source show."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator

FLOAT64 = (
    "- it uses numbers of 64 bits (float64), so a vector holds half as many. Begin sums as np.float32(0), and arrays "
    "as np.zeros(64, np.float32)."
)
INT64 = (
    "- it turns whole numbers of 64 bits into floats: in numba, every & and >> returns 64 bits. Cut them back to 32 "
    "bits at once: np.int32(word & mask)."
)
STRIDED = (
    "- it reads with strides: when the innermost loop advances by one, the next word is 256 bytes further on. Rows are "
    "neighbours in memory, so the innermost loop has to go over r in words[k, r]."
)
EIGHT = (
    "- its innermost loop goes over the eight codes of a word. LLVM does not vectorize such a loop: write the eight "
    "terms out, and let the innermost loop go over the 64 rows."
)
DIVISION = (
    "- it divides in the innermost loop. A division takes as long as several multiplications: divide beforehand, or "
    "mask codes in their places."
)
LIST = (
    "- it makes lists in its loops, which allocates and frees memory each time. Make one numpy array before the loops."
)
ARRAY = "- it makes arrays in its loops, which allocates and frees memory each time. Make them once, before the loops."


def reasons(function: Callable, tile) -> list[str]:
    """The reasons, as sentences for a learner. ``tile``: the function, compiled by numba and called once."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        tree = ast.Module([], [])
    return [text for text in (*_of_loops(tree), *_of_types(tile)) if text]


def _of_types(tile) -> Iterator[str]:
    """The reasons that numba's types of the variables show."""
    annotation = tile.overloads[tile.signatures[0]].type_annotation
    found = {str(kind) for kind in annotation.typemap.values()}
    if any(kind == "float64" or kind.startswith("array(float64") for kind in found):
        yield FLOAT64
    values = {
        a.target.name: a.value
        for block in annotation.blocks.values()
        for a in block.body
        if type(a).__name__ == "Assign"
    }
    for call, kind in annotation.calltypes.items():
        if kind is not None and str(kind.return_type) == "float32" and [str(a) for a in kind.args] == ["int64"]:
            given = getattr(call, "args", None)
            if given and type(values.get(given[0].name)).__name__ != "Const":  # np.float32(0) costs nothing
                yield INT64
                return


def _of_loops(tree: ast.AST) -> Iterator[str]:
    """The reasons that the loops in the source show."""
    loops = [node for node in ast.walk(tree) if isinstance(node, ast.For)]
    innermost = [loop for loop in loops if not any(isinstance(n, ast.For) for s in loop.body for n in ast.walk(s))]
    inside = [node for loop in loops for statement in loop.body for node in ast.walk(statement)]
    deepest = [node for loop in innermost for statement in loop.body for node in ast.walk(statement)]
    if any(_strided(loop) for loop in loops):
        yield STRIDED
    if any(_over_eight(loop) for loop in innermost):
        yield EIGHT
    if any(isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div | ast.FloorDiv | ast.Mod) for node in deepest):
        yield DIVISION
    if any(isinstance(node, ast.List | ast.ListComp) for node in inside):
        yield LIST
    if any(_makes_array(node) for node in inside):
        yield ARRAY


def _names(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _strided(loop: ast.For) -> bool:
    """Whether this loop over k reads ``words[k, r]`` and has no loop over r inside."""
    inside = [node for statement in loop.body for node in ast.walk(statement)]
    deeper = {name for node in inside if isinstance(node, ast.For) for name in _names(node.target)}
    for node in inside:
        if isinstance(node, ast.Subscript) and _names(node.value) == {"words"} and isinstance(node.slice, ast.Tuple):
            first, last = (_names(node.slice.elts[place]) for place in (0, -1))
            if _names(loop.target) & (first - last) and not last & deeper:
                return True
    return False


def _over_eight(loop: ast.For) -> bool:
    return ast.unparse(loop.iter) in ("range(8)", "range(0, 8)", "range(7)")


def _makes_array(node: ast.AST) -> bool:
    made = ("zeros", "empty", "ones", "full", "array", "copy", "astype", "zeros_like", "empty_like", "arange")
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in made
