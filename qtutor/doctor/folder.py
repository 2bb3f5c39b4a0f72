"""Checks of a folder as a whole: layers packed by accident, broken floats, the tokenizer, files that contradict."""

import warnings
from collections.abc import Iterator

import torch

from qtutor.doctor.finding import Finding
from qtutor.doctor.patient import Patient
from qtutor.errors import QtutorError, shown
from qtutor.families import FAMILIES
from qtutor.formats import foreign_settings
from qtutor.formats.checkpoint import STORED
from qtutor.formats.documents import file_in, read_json
from qtutor.formats.tokenizers_files import tokenizer_in

# Keys that both config.json and the file beside it have; some engines read the one, some the other.
SAID_TWICE = ("bits", "group_size", "sym", "desc_act", "checkpoint_format", "quant_algo", "has_zero_point")
FEW = 0.5  # if the tokenizer has less than this share of the tokens that the decoder embeds, it is another model's


def packed_embedding(patient: Patient) -> Iterator[Finding]:
    """An embedding that was quantized, by accident or not."""
    family = FAMILIES.get(patient.values.get("model_type"))
    name = _packed_under(patient, family.embedding) if family else None
    if name:
        yield Finding(
            "embedding", family.embedding,
            f"{name} is packed, and no engine looks tokens up in a packed matrix: quantize again with the embedding "
            "left out.",
        )  # fmt: skip


def packed_head(patient: Patient) -> Iterator[Finding]:
    """A packed head is right only if the settings say so and, by the config, the head has a matrix of its own."""
    family = FAMILIES.get(patient.values.get("model_type"))
    name = _packed_under(patient, family.head) if family else None
    if not name:
        return
    if patient.values.get("tie_word_embeddings"):
        why = "but by tie_word_embeddings the head is the embedding itself, so engines drop the packed one or stop"
        yield Finding("head", family.head, f"{name} is packed, {why}: quantize again with {family.head} left out.")
    elif not _is_to_be_packed(patient, family.head):
        why = f"but by quantization_config {family.head} stays in float, so engines look for {family.head}.weight"
        yield Finding("head", family.head, f"{name} is packed, {why}: correct the settings, or quantize again.")


def _packed_under(patient: Patient, layer: str) -> str | None:
    """The first packed tensor of a layer, if it has any."""
    names = (name for name in patient.files if name.startswith(f"{layer}."))
    plain = (f"{layer}.weight", f"{layer}.bias")
    return next((n for n in names if n not in plain or patient.files[n][1].dtype not in STORED), None)


def _is_to_be_packed(patient: Patient, layer: str) -> bool:
    try:
        form = foreign_settings.format_of(patient.settings, "")
        return layer in form.layouts(patient.settings, [layer], "")
    except QtutorError:
        return True  # other checks report other faults of the settings


def broken_floats(patient: Patient) -> Iterator[Finding]:
    """NaN and infinities in tensors that are not packed."""
    packed = patient.foreign.layouts if patient.foreign else {}
    for name, (_, stored) in patient.files.items() if patient.foreign else ():
        owner = next((layer for layer in packed if name.startswith(f"{layer}.")), None)
        if stored.dtype in STORED and owner is None and not torch.isfinite(patient.tensor(name)).all():
            wrong = int((~torch.isfinite(patient.tensor(name))).sum())
            yield Finding(
                "numbers", name, f"{name} holds {wrong} numbers that are NaN or infinite: copy or export it again."
            )
            return


def contradicting_files(patient: Patient) -> Iterator[Finding]:
    """Settings that are in two files and differ: an engine reads one of the two."""
    for file in foreign_settings.BESIDE if patient.settings else ():
        path = file_in(patient.folder, file)
        beside = {} if path is None else _readable(path)
        beside = beside["quantization"] if isinstance(beside.get("quantization"), dict) else beside
        for key in SAID_TWICE:
            one, other = patient.settings.get(key), beside.get(key)
            if one is not None and other is not None and one != other:
                yield Finding(
                    "settings", file, f"{file} says that {key} is {shown(other)}, and config.json says {shown(one)}, "
                    "and an engine reads one or the other: correct the wrong one.",
                )  # fmt: skip
                break


def _readable(path) -> dict:
    try:
        return read_json(path)
    except QtutorError:
        return {}  # the settings are in config.json, too


def tokenizer(patient: Patient) -> Iterator[Finding]:
    """Whether texts become the tokens that the decoder knows, and end where it ends."""
    if patient.foreign is None:
        return  # for a GGUF file and for our own folder, loading checks the tokenizer
    config = patient.foreign.model.config
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = tokenizer_in(patient.folder, config)
    except QtutorError as error:
        yield Finding("tokenizer", "tokenizer.json", str(error))
        return
    beyond = [str(one.message) for one in told if "its tokenizer has" in str(one.message)]
    if beyond:
        yield Finding("tokenizer", "tokenizer.json", beyond[0])
    if len(found) < FEW * config.vocab_size:
        yield Finding(
            "tokenizer", "tokenizer.json", f"tokenizer.json has {len(found):,} tokens and the decoder embeds "
            f"{config.vocab_size:,}: it is another model's, so copy the original's.",
        )  # fmt: skip
    yield from _special_ids(patient, found, config)


def _special_ids(patient: Patient, found, config) -> Iterator[Finding]:
    """bos, eos and pad of the configs have to be tokens, and the tokenizer's end has to be one that ends texts."""
    path = file_in(patient.folder, "generation_config.json")
    places = {"config.json": patient.values, "generation_config.json": read_json(path) if path else {}}
    ends = set()
    for file, values in places.items():
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            ids = values.get(key)
            ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
            ends |= {number for number in ids if key == "eos_token_id"}
            wrong = [number for number in ids if type(number) is not int or number >= config.vocab_size]
            if wrong:
                yield Finding(
                    "tokenizer", file, f"{file}: {key} is {shown(wrong[0])}, and the decoder knows tokens 0 to "
                    f"{config.vocab_size - 1}: copy the original's {file}.",
                )  # fmt: skip
    own = found.eos_token_id
    if ends and own is not None and own not in ends:
        yield Finding(
            "tokenizer", "tokenizer_config.json", f"tokenizer_config.json ends texts with token {own} "
            f"({shown(found.eos_token)}), and config.json with {', '.join(map(str, sorted(ends, key=str)))}, so that "
            "texts do not end: copy the original's tokenizer files and configs.",
        )  # fmt: skip
