"""Tables of chapter 12: missing results are reported, and each engine and branch has a row."""

from qtutor.course.choose import claims, tree
from qtutor.course.choose.results import NAMES, SMOLLM2, Stored, stored
from qtutor.course.tables import choose as tables
from qtutor.course.your_model.results import matched_rows
from qtutor.formats.ways import TARGETS

SHAPES = {"model.layers.0.self_attn.q_proj": (256, 256)}


def test_a_verdict_names_both_decoders(shown):
    tables.verdict("perplexity_hides")
    (text,) = shown
    assert text.startswith("**The claim.** Perplexity hides what tasks show.")
    both = claims.judged("perplexity_hides")
    assert all(f"- {NAMES[source]}: {one.figure}. It **{one.verdict}**." in text for source, one in both.items())


def test_a_verdict_says_what_is_missing(shown, monkeypatch):
    monkeypatch.setattr(claims, "judged", lambda name: {SMOLLM2: None})
    tables.verdict("perplexity_hides")
    assert shown[0].endswith(f"- SmolLM2: {claims.MISSING}.")


def test_every_claim_has_a_row(shown):
    tables.every_claim()
    assert all(claim.says in shown[0] for claim in claims.CLAIMS)


def test_models_are_ordered_by_loss(shown):
    tables.every_model(stored())
    assert shown[0] == f"**{len(stored().models)} models of the embedded decoder.**"
    names = [line.split("|")[1].strip() for line in shown[1].splitlines()[2:]]
    assert names[0] == "float" and names.index("GPTQ 4") < names.index("RTN 4") < names.index("RTN 3")


def test_every_engine_has_a_row(shown):
    tables.engines(stored(), SHAPES)
    assert [line.split("|")[1].strip() for line in shown[0].splitlines()[2:]] == list(TARGETS)
    assert "Q4_K_M file" in shown[0].splitlines()[-1]


def test_branches_say_what_is_missing(shown):
    empty = Stored({}, SMOLLM2)
    tables.tree_table({"embedded": stored(), SMOLLM2: empty})
    assert shown[0].count(claims.MISSING) == len(tree.BRANCHES)
    assert len(tables.branches(stored())) == len(tree.BRANCHES) and tables.branches(empty) == []


def test_what_chapter_11_knows_of_calibration(shown):
    tables.calibration_of_smollm2()
    (matched,) = (
        r["kl"] for r in matched_rows() if (r["bits"], r["calibrated"], r["measured"]) == (3, "Python", "Python")
    )
    (prose,) = (
        r["kl"] for r in matched_rows() if (r["bits"], r["calibrated"], r["measured"]) == (3, "prose", "Python")
    )
    assert f"with English prose {prose / matched:.2f} times" in shown[0]


def test_the_spread_of_draws(shown):
    tables.spread_of_draws(stored(), Stored({}, SMOLLM2))
    (text,) = shown
    assert "- the embedded decoder: 9 models were calibrated, each on 3 draws of text." in text
    assert text.endswith("- SmolLM2: no calibrated model is stored.")
