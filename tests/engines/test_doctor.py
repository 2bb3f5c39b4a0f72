"""The doctor uses the formats' own libraries: they decode its patients to our weights, and it reports differences."""

from dataclasses import replace

import pytest

from qtutor.doctor import libraries
from qtutor.doctor.patient import opened
from tests.doctor.folders import HEALTHY, healthy

PACKAGES = {
    "compressed-tensors": "compressed_tensors",
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
    "bitsandbytes": "bitsandbytes",
    "mlx": "mlx.core",
}


@pytest.mark.parametrize("name", [name for name, (form, _) in HEALTHY.items() if form in libraries.decoders()])
def test_every_layer_is_decoded_by_the_library(name):
    form = HEALTHY[name][0]
    pytest.importorskip(PACKAGES[form])
    patient = opened(healthy(name), None, "cpu")
    same, others = libraries.Decoded(patient), libraries.Decoded(patient)
    for layer in patient.layers():
        ours = layer.quantized.dequantize()
        theirs = libraries.decoders()[form](layer)  # the doctor ignores errors of a library; here they fail the test
        assert (theirs.float() - ours).abs().max() <= libraries.TOLERANCE * ours.abs().max()
        same.see(layer)
        others.see(replace(layer, quantized=replace(layer.quantized, codes=layer.quantized.codes.flip(0))))
    assert not [*same.findings()]
    (found,) = others.findings()
    assert found.kind == "library" and f"(and {patient.packed - 1} more layers)" in found.text
