"""`qtutor doctor FOLDER`: why a checkpoint talks garbage, a sentence a finding; which engines accept it; a test run.

    print(examine("path/to/llama-gptq"))
    examine("out", against="path/to/llama").findings

The folder is opened (:mod:`.patient`) and checked as a whole (:mod:`.folder`), and then layer by layer. Each check of
:data:`OF_A_LAYER` says in a sentence what is wrong with one layer. The checks of :data:`OF_ALL` collect a sign from
every layer and judge at the end, since an error of conversion is in all layers alike. Then the model reads a text
(:mod:`.running`), and :mod:`qtutor.formats.taking` says which engines accept it. If FLOAT (the float checkpoint that
was quantized) is given, zero points and orders are compared with it exactly. Without FLOAT, they are judged by
statistics of the codes, which do not show every error. Weights in wrong places show only with FLOAT (:mod:`.places`).

The doctor cannot see that a model was quantized badly, if its bytes are as they should be. `qtutor eval --against`
measures that.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qtutor.doctor import engines, folder, index, libraries, order, places, scales, zeros
from qtutor.doctor.finding import Finding, counted
from qtutor.doctor.patient import Patient, opened
from qtutor.doctor.running import Run, run
from qtutor.errors import QtutorError
from qtutor.formats.taking import Verdict

OF_A_FOLDER = (folder.packed_embedding, folder.packed_head, folder.broken_floats, folder.tokenizer)
OF_A_LAYER = (scales.not_finite, scales.too_large, scales.vanished, scales.negative, index.missing, index.another_order)
OF_ALL = (zeros.ZeroPoints, order.Orders, libraries.Decoded)
EXPLAINS = ("scales", "zero points", "group index", "head", "embedding")  # findings that say why a layer is refused


@dataclass(frozen=True)
class Diagnosis:
    """What was found. form: the format's name. layers: how many are packed. run: ``None`` if no pass was possible.

    engines: the verdict of each engine on the folder; empty if the folder could not be read.
    """

    source: str
    form: str
    layers: int
    findings: tuple[Finding, ...]
    run: Run | None
    engines: tuple[Verdict, ...]

    @property
    def healthy(self) -> bool:
        return not self.findings

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.form}, {self.layers} packed layers.", ""]
        lines += [f"{number}. {found}" for number, found in enumerate(self.findings, 1)] or ["healthy"]
        lines += ["", str(self.run) if self.run else "No forward pass was run: mend these findings first."]
        if self.engines:
            width = max(len(one.engine) for one in self.engines)
            lines += ["", "Which engines take it:"]
            lines += [f"  {one.engine:{width}}  {'yes' if one.takes else 'no ':3}  {one.why}" for one in self.engines]
        return "\n".join(lines)

    def as_dict(self) -> dict:
        """All fields, in types that JSON can hold."""
        return {
            "source": self.source,
            "healthy": self.healthy,
            "format": self.form,
            "layers": self.layers,
            "findings": [vars(one) for one in self.findings],
            "run": None if self.run is None else {k: v for k, v in vars(self.run).items() if k != "findings"},  # above
            "engines": [vars(one) for one in self.engines],
        }


def examine(source: str | Path, against: str | Path | None = None, device: str | None = None) -> Diagnosis:
    """Look at a quantized checkpoint, and compare it with FLOAT (``against``, its float checkpoint) if that is given.

    Raises :class:`QtutorError` if ``source`` is no checkpoint at all, or FLOAT belongs to another decoder.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the findings below say what loading would warn of
        patient = opened(source, against, device)
        found = [finding for check in OF_A_FOLDER for finding in check(patient)]
        found += _of_layers(patient)
        found = _without_repeats(found, patient)
        done = None
        if not any(one.kind in ("unreadable", *EXPLAINS) for one in found):
            try:
                done = run(patient, bool(found))
                found += done.findings
            except QtutorError as error:
                if not any(one.kind in ("numbers", "tokenizer") for one in found):  # these say why
                    found.append(Finding("unreadable", patient.name, str(error)))
        found += folder.contradicting_files(patient)
        table, more = engines.asked(patient)
        more = [] if any(one.kind == "zero points" for one in found) else more  # engines go by a wrong label
        return Diagnosis(str(source), patient.form, patient.packed, (*found, *more), done, tuple(table))


def _of_layers(patient: Patient) -> Iterator[Finding]:
    """The findings of the layers, each of which is read once."""
    said, unread = {check: [] for check in OF_A_LAYER}, []
    judges, where = [make(patient) for make in OF_ALL], places.Places(patient)
    for layer in patient.layers():
        signs = {check: sentence for check in OF_A_LAYER if (sentence := check(layer))}
        for check, sentence in signs.items():
            said[check].append((layer.name, sentence))
        if layer.problem:
            unread.append((layer.name, layer.problem))
        for judge in judges if signs else (*judges, where):
            judge.see(layer)
    for check, signs in said.items():
        if signs:
            yield counted(check.__module__, signs)
    found = [finding for judge in judges for finding in judge.findings()]
    yield from found
    if not any(one.kind in places.SAID_BY for one in found):  # these are reasons for weights in wrong places
        yield from where.findings()
    if unread:
        yield counted("unreadable", unread)


def _without_repeats(found: list[Finding], patient: Patient) -> list[Finding]:
    """The findings without the reader's complaint about a fault that has a finding of its own, which says more."""
    explained = [one for one in found if one.kind in EXPLAINS]
    if patient.problem and not any(one.layer in patient.problem for one in explained):
        found = [*found, Finding("unreadable", str(patient.folder), patient.problem)]
    return [one for one in found if one.kind != "unreadable" or one.layer == str(patient.folder) or not explained]
