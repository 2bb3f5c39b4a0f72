"""The decision tree: branches lead to measured rows, and an engine only leads to rows that it accepts."""

from qtutor.course.choose import tree
from qtutor.course.choose.candidates import CANDIDATES
from qtutor.course.choose.results import SMOLLM2, stored
from qtutor.formats.targets import layer_shapes, pick
from qtutor.formats.ways import TARGETS
from qtutor.recipe import Recipe
from tests.models import tiny

OF = stored()
SHAPES = {
    "model.layers.0.self_attn.q_proj": (256, 256), "model.layers.0.self_attn.k_proj": (128, 256),
    "model.layers.0.self_attn.v_proj": (128, 256), "model.layers.0.mlp.down_proj": (256, 512),
}  # fmt: skip


def test_every_branch_leads_to_a_measured_row():
    for branch in tree.BRANCHES:
        assert branch.row in OF.models and branch.when and branch.take and branch.why
    assert len({branch.when for branch in tree.BRANCHES}) == len(tree.BRANCHES)


def test_the_reasons_are_true():
    assert OF.models["GPTQ on NVFP4"].kl < OF.models["NVFP4"].kl
    for of in (OF, stored(SMOLLM2)):
        kl = {name: model.kl for name, model in of.models.items()}
        assert kl["int8"] < kl["FP8"] and kl["GPTQ 4"] < 0.55 * kl["RTN 4"]
        others = of.listed(["RTN 4", "HQQ 4", "NF4", "MXFP4"])
        assert len(others) == 4 and all(of.models["NVFP4"].kl < other.kl for other in others)


def test_an_engine_is_only_led_to_what_it_takes():
    found = tree.best_of_engine(OF, SHAPES)
    assert set(found) == set(TARGETS)
    for target, by_size in found.items():
        for size, best in by_size.items():
            if best is None:
                continue
            model, form = best
            candidate = CANDIDATES[model.name]
            low, high = tree.SIZES[size]
            assert low < tree.bits_of(candidate) <= high
            if target == "llama.cpp":
                assert form == f"gguf, {candidate.file}"
            else:
                assert pick(target, SHAPES, candidate.recipe).format == form.rstrip("*")


def test_the_best_has_the_least_kl():
    model, _ = tree.best_of_engine(OF, SHAPES)["vllm"]["4 bits"]
    taken = [n for n in OF.models if n in CANDIDATES and tree.taken("vllm", CANDIDATES[n], SHAPES)]
    assert all(model.kl <= OF.models[n].kl for n in taken if 3.5 < tree.bits_of(CANDIDATES[n]) <= 4.5)


def test_sinq_has_no_engine_and_llama_cpp_only_its_files():
    assert not any(tree.taken(target, CANDIDATES["SINQ 4"], SHAPES) for target in TARGETS)
    assert tree.taken("llama.cpp", CANDIDATES["RTN 4"], SHAPES) is None
    assert tree.taken("vllm", CANDIDATES["Q4_0 file"], SHAPES) is None
    assert tree.taken("tensorrt-llm", CANDIDATES["RTN 4"], SHAPES) is None  # zero points


def test_shapes_of_a_model_will_do():
    shapes = layer_shapes(tiny(), Recipe())
    assert tree.best_of_engine(OF, shapes)["transformers"]["5 to 8 bits"] is not None
