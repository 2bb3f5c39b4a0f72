"""What a layer is, by its full name alone: for code that sees names, and no model that would tell its family.

The layers of other tools' checkpoints are such names. All known families are asked; a name counts if it fits one.
"""

from collections.abc import Iterator

from qtutor.families.family import Half
from qtutor.families.known import FAMILIES


def is_head(name: str) -> bool:
    """Whether ``name`` is that of the output matrix.

    >>> is_head("lm_head"), is_head("model.layers.0.mlp.down_proj")
    (True, False)
    """
    return any(name == family.head for family in FAMILIES.values())


def ends_half(name: str) -> bool:
    """Whether a layer is the last one of its half, so that no other layer reads the same input.

    >>> ends_half("model.layers.0.self_attn.o_proj"), ends_half("model.layers.0.self_attn.q_proj")
    (True, False)
    """
    return any(name.endswith(f".{half.last}") for half in _halves())


def reads_with(name: str) -> list[str]:
    """The full names of the other layers that read the same input as the layer ``name`` does.

    >>> reads_with("model.layers.0.self_attn.q_proj")
    ['model.layers.0.self_attn.k_proj', 'model.layers.0.self_attn.v_proj']
    """
    found = (
        name.removesuffix(own) + other
        for half in _halves()
        for own in half.readers
        if name.endswith(f".{own}")
        for other in half.readers
        if other != own
    )
    return list(dict.fromkeys(found))


def _halves() -> Iterator[Half]:
    return (half for family in FAMILIES.values() for half in family.halves)
