"""One thing that is wrong, in a sentence."""

from dataclasses import dataclass

KINDS = {
    "qtutor.doctor.scales": "scales",
    "qtutor.doctor.index": "group index",
}  # by the module of a check


@dataclass(frozen=True)
class Finding:
    """kind: its topic. layer: the layer, tensor or file. text: a sentence that names it and says what to do."""

    kind: str
    layer: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


def counted(kind: str, signs: list[tuple[str, str]]) -> Finding:
    """One finding for a fault that several layers have; its text is about the first. signs: layer and sentence."""
    (layer, text), more = signs[0], len(signs) - 1
    also = f" ({more} more layer{'s' if more > 1 else ''} likewise.)" if more else ""
    return Finding(KINDS.get(kind, kind), layer, f"{text}{also}")
