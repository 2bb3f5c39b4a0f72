"""Which engines will accept a checkpoint, and the finding that none will."""

from qtutor.doctor.finding import Finding
from qtutor.doctor.patient import Patient
from qtutor.formats import FOREIGN
from qtutor.formats.gptq import FIRST
from qtutor.formats.taking import Verdict, verdicts


def asked(patient: Patient) -> tuple[list[Verdict], list[Finding]]:
    """The verdict of each engine, and a finding if none accepts the folder. Both are empty if it cannot be read."""
    if patient.foreign is None and (patient.problem or patient.form != "gguf"):
        return [], []
    layers = {} if patient.form == "gguf" else patient.quant_layers()
    found = verdicts(patient.form, layers, _in_the_way(patient))
    if patient.form in FOREIGN and not any(one.takes for one in found):
        reasons = {one.engine: one.why.partition(", like ")[2].partition(": ")[2] or one.why for one in found}
        why = "; ".join(f"{engine}: {reason}" for engine, reason in reasons.items() if "does not read" not in reason)
        text = f"quantization_config ({patient.form}): no engine takes it ({why}); convert it to another format."
        return found, [Finding("settings", "quantization_config", text)]
    return found, []


def _in_the_way(patient: Patient) -> dict[str, str]:
    """By engine, an obstacle outside the layers' grids: for GPTQ, version 1 of an asymmetric file, or desc_act."""
    settings, found = patient.settings, {}
    if patient.form != "gptq":
        return found
    meta = settings.get("meta") if isinstance(settings.get("meta"), dict) else {}
    by_it = "gptqmodel" in str(meta.get("quantizer"))
    version = settings.get("checkpoint_format") or settings.get("format") or FIRST
    if settings.get("sym") is False and version == FIRST and not by_it:
        found["transformers"] = "gptqmodel reads asymmetric files of version 1 only if it wrote them: convert it"
    if settings.get("desc_act"):
        found["vllm-cpu"] = "it reads no desc_act"
    return found
