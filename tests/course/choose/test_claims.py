"""Claims: the README says what is stored, verdicts have margins, and missing rows are reported."""

import json
import math
import re
from pathlib import Path

import pytest

from benchmarks import pages
from qtutor.course.choose import answers, claims, results
from qtutor.course.choose.candidates import AT_FOUR_BITS, CANDIDATES, OF_SMOLLM2
from qtutor.course.choose.results import EMBEDDED, SMOLLM2, Stored, stored

CHAPTER = Path(__file__).parents[3] / "notebooks" / "12_choose.ipynb"


def of(models: dict | None = None, found: dict | None = None, source: str = EMBEDDED) -> Stored:
    """Made-up numbers. models: for each name, the differences from the row ``plain``. found: numbers of the claims."""
    plain = {"kl": 0.1, "kl_error": 0.01, "rise": 3.0, "rise_error": 0.5, "flips": 0.1}
    rows = {
        name: {"family": "x", "nbytes": 10, "draws": [plain | change], "tasks": change.get("tasks", {})}
        for name, change in (models or {}).items()
    }
    return Stored({source: {"models": rows, "claims": found or {}}}, source)


def test_the_table_and_the_readme_are_current():
    assert pages.read(pages.README, "claims") == claims.in_short()
    page = pages.README.with_name("benchmarks").joinpath("claims.md").read_text(encoding="utf-8")
    assert page.endswith("\n\n" + claims.page_table() + "\n")
    assert all(page.count(claim.says) == 1 for claim in claims.CLAIMS)


def test_every_stored_number_says_how_and_when():
    for source, parts in results.document().items():
        assert source in (EMBEDDED, SMOLLM2)
        for part in parts.values():
            for row in part.values():
                assert row["how"].startswith(f"python benchmarks/claims.py --source {source}; 20")


def test_every_candidate_was_measured_and_calibrated_ones_three_times():
    for source, wanted in ((EMBEDDED, CANDIDATES), (SMOLLM2, OF_SMOLLM2)):
        models = stored(source).models
        assert set(models) == {"float", *wanted}
        for name in wanted:
            assert len(models[name].draws) == (3 if CANDIDATES[name].calibrated else 1)
            assert models[name].kl_error > 0
    assert set(AT_FOUR_BITS) <= set(OF_SMOLLM2) <= set(CANDIDATES)


def test_every_claim_is_judged_on_the_embedded_decoder():
    for claim in claims.CLAIMS:
        found = claims.judged(claim.name)[EMBEDDED]
        assert found is not None and found.verdict in (claims.HOLDS, claims.PARTLY, claims.FAILS), claim.name


def test_what_is_missing_is_said_to_be(monkeypatch):
    for claim in claims.CLAIMS:
        assert claim.judge(Stored({}, SMOLLM2)) is None
    assert not any(claims.MISSING in row for row in claims.rows())
    monkeypatch.setattr(claims, "stored", lambda source: stored(source) if source == EMBEDDED else Stored({}, source))
    assert all(row[2] == claims.MISSING and row[1] != claims.MISSING for row in claims.rows())
    assert claims.in_short().endswith(f"{len(claims.CLAIMS)} not measured.")


def test_near_a_bound_nobody_is_said_to_be_over_it():
    names = {name: {} for name in AT_FOUR_BITS[:2]}
    near = claims.six_percent(of(names | {"NF4": {"rise": 6.5, "rise_error": 0.5}}))
    assert near.verdict == claims.PARTLY and "clearly over 6 %: 0, too close to say: 1" in near.figure
    over = claims.six_percent(of(names | {"NF4": {"rise": 7.5, "rise_error": 0.5}}))
    assert over.verdict == claims.PARTLY and "clearly over 6 %: 1, too close to say: 0" in over.figure
    assert claims.six_percent(of({"NF4": {"rise": 60}})).verdict == claims.FAILS
    assert claims.six_percent(of(names)).verdict == claims.HOLDS


@pytest.mark.parametrize(("loud", "verdict"), [(0.01, claims.HOLDS), (0.07, claims.PARTLY), (0.096, claims.FAILS)])
def test_one_percent_needs_more_than_luck(loud, verdict):
    kept = {"loudest inputs": [loud], "largest weights": [0.098], "at random": [0.1, 0.099, 0.1]}
    assert claims.one_percent(of(found={"one_percent": {"none": 0.1, "kept": kept}})).verdict == verdict


@pytest.mark.parametrize(("times", "verdict"), [(200, claims.HOLDS), (3, claims.PARTLY), (1.01, claims.FAILS)])
def test_a_super_weight_kills(times, verdict):
    found = {"rows": [{"times": 1.0}, {"times": times}], "largest_weights": [1.0]}
    assert claims.super_weight(of(found={"super_weight": found})).verdict == verdict


def test_guessing_is_taken_off():
    right = dict.fromkeys(("sum", "difference", "product", "compare", "max", "sorted", "reversed", "logic"), 1.0)
    models = of({"float": {"tasks": right}, "RTN 3": {"tasks": right | {"sum": 0.5, "compare": 0.5, "logic": 0.75}}})
    kept = answers.kinds_kept(models, "RTN 3")
    assert (kept["sum"], kept["compare"], kept["logic"], kept["max"]) == (0.5, 0, 0.5, 1)


def test_what_perplexity_suggests():
    right = dict.fromkeys(("sum", "difference", "product"), 0.9)
    left = dict.fromkeys(right, 0.45)
    models = of({"float": {"tasks": right}, "RTN 4": {"tasks": left, "rise": 25.0}})
    kept, suggested, chance = answers.arithmetic_kept(models, "RTN 4")
    assert (kept, suggested) == pytest.approx((0.5, 0.8)) and 0.02 < chance < 0.04


def test_a_file_is_so_many_times_smaller():
    found = {"groups": {"64": {"bits": 4.0, "layers": 50}}, "bytes_in_16": 300, "not_quantized": 100}
    assert claims.smaller(found) == (4, 2)


def test_what_is_said_of_published_figures_follows_from_them():
    """Recovered shares of the loss in AWQ's table 1 (OPT-6.7B, 3 bits); rises from its table 4 and torchao's README."""
    text = CHAPTER.read_text(encoding="utf-8")
    exact, none = 10.86, 23.54
    for shares, change in (("94 % and 7 %", math.log), ("96 % and 9 %", lambda perplexity: perplexity)):
        back = [(change(none) - change(kept)) / (change(none) - change(exact)) for kept in (11.39, 22.37)]
        assert " and ".join(f"{share:.0%}".replace("%", " %") for share in back) == shares and shares in text
    for before, after in ((5.47, 5.60), (10.936, 11.409), (10.936, 11.905), (10.936, 12.380)):
        assert re.search(rf"{after:.{2 if before < 10 else 3}f}, [a-z ]*\+ {100 * (after / before - 1):.1f} %", text)


def test_the_file_is_json_with_few_digits():
    text = results.STORED.read_text(encoding="utf-8")
    assert json.loads(text) == results.document() and len(text) < 200_000


def test_smollm2_is_judged_by_its_own_questions():
    right = {"sum": 0.6, "capitals": 0.8, "sequence": 0.4, "verb": 0.9, "object": 1.0}
    left = {"sum": 0.0, "capitals": 0.2, "sequence": 0.3, "verb": 0.7, "object": 1.0}
    stored = of({"float": {"tasks": right}, "RTN 3": {"tasks": left, "rise": 100.0}}, source=SMOLLM2)
    kept = answers.kinds_kept(stored, "RTN 3")
    assert kept == pytest.approx({"sum": 0, "capitals": 0.25, "sequence": 0.75, "verb": 0.5, "object": 1})
    assert answers.arithmetic_kept(stored, "RTN 3")[:2] == pytest.approx((0.3, 0.5))
    assert answers.exact_and_others(stored, "RTN 3")[:2] == pytest.approx((1 / 3, 0.75))
    assert claims.exact_first(stored).verdict == claims.HOLDS
    same = of({"float": {"tasks": right}, "RTN 3": {"tasks": right}}, source=SMOLLM2)
    assert claims.exact_first(same).verdict == claims.PARTLY


@pytest.mark.parametrize("source", results.NAMES)
def test_questions_are_of_one_sort_each(source):
    kinds = answers.QUESTIONS[source]
    assert not set(kinds.exact) & set(kinds.others) and set(kinds.guessable) <= set(kinds.others)
    assert set(kinds.arithmetic) <= set(kinds.exact)
