"""The built-in text: it is small, has two parts that share nothing, and is used if no other text is named."""

import warnings

import pytest
import torch

import qtutor
from qtutor.calibration import builtin
from qtutor.calibration.builtin import builtin_calibration, builtin_held_out, pieces
from qtutor.decoder import corpus
from tests.models import tiny


@pytest.fixture(scope="module")
def tokenizer():
    return qtutor.load()[1]


def test_it_is_small_english_and_in_two_parts():
    assert builtin.ENGLISH.stat().st_size < 300_000
    ours, held_out = pieces(held_out=False), pieces(held_out=True)
    assert len(ours) + len(held_out) == 58 and abs(len(ours) - 2 * len(held_out)) <= 2
    assert not set(ours) & set(held_out)
    sentences = [{line for text in part for line in text.split("\n\n")} for part in (ours, held_out)]
    assert not sentences[0] & sentences[1]
    for text in ours + held_out:
        assert len(text) > 500 and text.count(" the ") + text.count(" a ") > 5 and "\f" not in text


def test_calibration_is_english_and_python_in_turns(tokenizer):
    text = builtin_calibration(tokenizer, 64, 24)
    assert text.token_ids.shape == (24, 64) and text.token_ids.dtype == torch.int64
    english = "\n\n\n".join(pieces(held_out=False))
    inside = [tokenizer.decode(row) in english for row in text.token_ids]
    assert inside == [True, False] * 12
    modules = corpus.training_modules()
    for row in text.token_ids[1::2]:
        assert any(tokenizer.decode(row)[:-1] in module for module in modules)  # the last character may be cut
    assert "1,536 tokens (24 samples of 64) of the built-in text, 12 in English and 12 in Python" in text.told
    assert torch.equal(builtin_calibration(tokenizer, 64, 24).token_ids, text.token_ids)


def test_where_english_ends_there_is_more_python(tokenizer):
    text = builtin_calibration(tokenizer, 512, 200)
    assert text.token_ids.shape == (200, 512)
    told = text.told.split("text, ")[1].split()
    assert 10 < int(told[0]) < 100 and int(told[0]) + int(told[4]) == 200


def test_what_is_measured_on_was_not_calibrated_with(tokenizer):
    held_out, english = builtin_held_out(tokenizer, 64, 16), "\n\n\n".join(pieces(held_out=True))
    code = corpus.held_out_code()
    inside = [(tokenizer.decode(row) in english, tokenizer.decode(row) in code) for row in held_out.token_ids]
    assert inside == [(True, False), (False, True)] * 8
    taken = builtin_calibration(tokenizer, 64, 200).token_ids
    assert not set(map(tuple, held_out.token_ids.tolist())) & set(map(tuple, taken.tolist()))


def test_quantize_takes_it_with_a_tokenizer_alone(tokenizer):
    model = tiny()
    model.resize_token_embeddings(1024, mean_resizing=False)
    recipe = qtutor.Recipe(method="gptq", group_size=32)
    with pytest.raises(qtutor.QtutorError, match=r"needs text: pass calibration=.*only tokenizer=, the built-in text"):
        qtutor.quantize(model, recipe, progress=False)
    with pytest.warns(
        UserWarning, match=r"no calibration text was given, so 8,192 tokens \(128 samples of 64\)"
    ) as given:
        report = qtutor.quantize(model, recipe, progress=False, tokenizer=tokenizer)
    assert given[0].filename == __file__  # Python shows the caller's line
    assert report.rows and all(row.output_error is not None for row in report.rows)


def test_neither_nearest_nor_the_embedded_decoder_takes_it(tokenizer, monkeypatch):
    monkeypatch.setattr(builtin, "builtin_calibration", None)
    seen = []
    own = qtutor.decoder.text.calibration_tokens
    monkeypatch.setattr(qtutor.decoder.text, "calibration_tokens", lambda: seen.append(1) or own(samples=2, length=32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        qtutor.quantize(tiny(), qtutor.Recipe(group_size=32), progress=False, tokenizer=tokenizer)
        model, _ = qtutor.load()
        qtutor.quantize(model, qtutor.Recipe(method="gptq"), progress=False, tokenizer=tokenizer)
    assert seen == [1]
