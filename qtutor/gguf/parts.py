"""Files that are parts of a larger one: llama.cpp cuts them as NAME-00001-of-00003.gguf."""

import re
from pathlib import Path

PART = re.compile(r"(?P<name>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<end>\.gguf)", re.IGNORECASE)


def part_of(path: str | Path, metadata: dict | None = None) -> str | None:
    """What to say of a file that is a part: which, and where the others are; ``None`` for a whole one.

    metadata: of the file, where it was read; it knows of parts that were given other names.

    >>> part_of("model-00001-of-00002.gguf")
    'part 1 of 2 of a split file; the other: model-00002-of-00002.gguf (not here)'
    """
    path = Path(path)
    match = PART.fullmatch(path.name)
    count = int((metadata or {}).get("split.count", match["count"] if match else 1))
    if count <= 1:
        return None
    if not match:
        number = int((metadata or {}).get("split.no", 0)) + 1
        return f"part {number} of {count} of a split file, under another name; the others are not known by name"
    others = [number for number in range(1, int(match["count"]) + 1) if number != int(match["number"])]
    shown = others if len(others) <= 6 else [*others[:3], *others[-2:]]
    names = [f"{match['name']}-{number:05d}-of-{match['count']}{match['end']}" for number in shown]
    here = [name + ("" if path.with_name(name).is_file() else " (not here)") for name in names]
    if len(shown) < len(others):
        here.insert(3, "...")
    word = "the other" if len(others) == 1 else "the others"
    return f"part {int(match['number'])} of {int(match['count'])} of a split file; {word}: {', '.join(here)}"
