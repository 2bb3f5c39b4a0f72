"""Flipped bits of a block: the decoder still computes the stored results, and every bit changes the right weights."""

import numpy as np
import pytest
import torch

import qtutor
from qtutor import evaluate
from qtutor.course import bit_flips
from qtutor.course.bit_flips import BITS, document, flipped, part_of, weights_moved
from qtutor.gguf import decode, encode
from qtutor.gguf.anatomy import item_bits
from tests.gguf import inputs

EXPONENT_OF_D, HIGH_BIT_OF_SCALE_7, CODE = 14, 8 * 7 + 7, 8 * 77 + 6


@pytest.fixture(scope="module")
def decoder():
    torch.set_num_threads(1)
    return bit_flips.Decoder()


@pytest.fixture(scope="module")
def block():
    return np.frombuffer(bytes.fromhex(document()["block"]), np.uint8)


def test_the_stored_settings_and_bytes_are_those_of_today(decoder):
    stored = document()
    assert {key: stored[key] for key in bit_flips.settings()} == bit_flips.settings()
    assert stored["block"] == bytes(decoder.block).hex()
    assert len(stored["kl"]) == len(stored["text_of"]) == BITS == 1152
    assert len(stored["texts"]) == len(set(stored["texts"])) == max(stored["text_of"]) + 1


# Bits of every kind. Some have nearly the highest KL, and some nearly the lowest.
@pytest.mark.parametrize("bit", [0, 9, 13, EXPONENT_OF_D, 15, 28, 30, 37, HIGH_BIT_OF_SCALE_7, 100, CODE, 700, 1151])
def test_the_stored_numbers_are_those_that_the_decoder_computes(decoder, bit):
    assert decoder.kl(bit) == pytest.approx(document()["kl"][bit], rel=0.01, abs=1e-10)


@pytest.mark.parametrize("bit", [EXPONENT_OF_D, 27, 28, HIGH_BIT_OF_SCALE_7, CODE])
def test_the_stored_texts_are_those_that_the_decoder_writes(decoder, bit):
    assert decoder.continuation(bit) == document()["texts"][document()["text_of"][bit]]


def test_the_first_text_is_that_of_the_whole_decoder(decoder):
    assert decoder.text == document()["texts"][0]
    assert decoder.continuation(0) == decoder.text  # the lowest bit of d changes no word


def test_the_decoder_is_whole_again_afterwards(decoder):
    before = decoder.weights.clone()
    decoder.kl(EXPONENT_OF_D), decoder.continuation(EXPONENT_OF_D)
    assert torch.equal(decoder.weights, before)


def test_a_flip_costs_what_the_package_measures_on_the_same_tokens(decoder):
    """Measured in a second way: two float32 models, a bit flipped in the whole tensor's bytes, and evaluate.compare."""
    models = []
    for damaged in (True, False):
        model, tokenizer = qtutor.load_decoder()
        layer = model.get_submodule(bit_flips.LAYER)
        data = encode(layer.weight.detach().numpy(), "Q4_K")
        if damaged:
            data.reshape(-1)[144 * bit_flips.BLOCK + EXPONENT_OF_D // 8] ^= 1 << EXPONENT_OF_D % 8
        layer.weight = torch.nn.Parameter(torch.from_numpy(decode(data, "Q4_K")))
        models.append(model)
    ids = evaluate.held_out_tokens(tokenizer, limit=bit_flips.TOKENS)
    found = evaluate.compare(*models, ids, window=bit_flips.TOKENS)
    assert found.kl == pytest.approx(document()["kl"][EXPONENT_OF_D], rel=1e-3)


def test_of_all_bits_only_weights_that_depend_on_them_move(block):
    zeros = {i for i in range(256) if item_bits("Q4_K", block, "code", i) == 0}
    for bit in range(BITS):
        part, moved = part_of(bit), set(weights_moved(block, bit))
        assert len(part.weights) == {"code": 1, "scale": 32, "min": 32, "d": 256, "dmin": 256}[part.item]
        # A scale times code 0 is 0, whatever the scale is.
        assert moved == set(part.weights) - (zeros if part.item in ("scale", "d") else set()), bit


def test_every_bit_belongs_to_one_kind():
    kinds = bit_flips.bits_by_kind()
    assert {kind: len(bits) for kind, bits in kinds.items()} == {
        "d": 16, "dmin": 16, "scale": 48, "min": 48, "code": 1024
    }  # fmt: skip
    assert sorted(bit for bits in kinds.values() for bit in bits) == list(range(BITS))


def test_flipping_changes_one_bit_of_a_copy():
    block = encode(inputs.gaussian(1, 256), "Q4_K")[0]
    other = flipped(block, 8 * 20 + 3)
    assert block[20] ^ other[20] == 8 and (np.delete(block, 20) == np.delete(other, 20)).all()
