"""A decoder answers: messages through the chat template of its tokenizer, a greedy answer up to the end of its turn."""

import torch

from qtutor.calibration.chat import end_of_turn, rendered
from qtutor.errors import QtutorError
from qtutor.guards.running import check_measurable
from qtutor.measure.generation import before, check_embedded, room_behind, stored_in, text_ends
from qtutor.runtime.steps import quick_steps


def answer(
    model, tokenizer, messages: list[dict[str, str]], max_new_tokens: int = 256, streamer=None, cache=None
) -> str:
    """The greedy answer to a conversation, without the token that ends it.

    messages: ``[{"role": "user", "content": "..."}, ...]``. streamer: one of transformers', which gets the tokens while
    they are computed. cache: a :class:`qtutor.runtime.kv.KVFormat` to store keys and values in. The answer ends at a
    token that ends texts, at the token with which the template ends a turn, after ``max_new_tokens``, or at the end of
    the context. Raises :class:`QtutorError` for a tokenizer without a template, for a conversation that its template
    refuses, and for one that leaves no room in the model's context.
    """
    check_measurable(model)
    ids = conversation_tokens(model, tokenizer, messages)
    room = room_behind(model, len(ids))
    ends = answer_ends(model, tokenizer)
    given = torch.tensor([ids], device=model.device)
    with torch.inference_mode(), quick_steps(model):
        written = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=max_new_tokens if room is None else min(max_new_tokens, room),
            do_sample=False,
            eos_token_id=ends or None,
            pad_token_id=tokenizer.eos_token_id or 0,
            streamer=streamer,
            **stored_in(cache, model),
        )
    return tokenizer.decode(before(ends, written[0, len(ids) :].tolist()), skip_special_tokens=True)


def conversation_tokens(model, tokenizer, messages: list[dict[str, str]]) -> list[int]:
    """Token ids of a conversation, up to the beginning of the next answer."""
    try:
        text = rendered(tokenizer, messages, ask=True)
        text.encode()
    except UnicodeEncodeError as error:  # from a command line in another encoding
        raise QtutorError(f"the question is no text that can be written as UTF-8: {error}.") from None
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]  # the template wrote the special tokens
    check_embedded(model, tokenizer, ids, "the conversation")
    return ids


def answer_ends(model, tokenizer) -> list[int]:
    """The tokens that end an answer: those that end texts, and the one with which the template ends a turn."""
    ends = [number for number in text_ends(model) if number is not None]
    return ends + [number for number in end_of_turn(tokenizer) if number not in ends]
