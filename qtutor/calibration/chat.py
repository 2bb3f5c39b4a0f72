"""Conversations in the form that a model reads: messages written out by the chat template of its tokenizer.

A template is a program in Jinja that comes with the checkpoint. transformers renders it in a sandbox
(``apply_chat_template``): it sees the messages and nothing else, and can neither open files nor import anything. So it
is the only part of a checkpoint that is executed. It can still be wrong, or refuse a conversation; here, both raise a
:class:`QtutorError`.
"""

from qtutor.errors import QtutorError, said, shown

# The names of the speakers in datasets of ShareGPT's layout.
SPEAKERS = {
    **{"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant"},
    **{"bot": "assistant", "chatgpt": "assistant", "system": "system", "tool": "tool", "function": "tool"},
}
ANSWER = "qtutor asks what follows an answer"


def messages_of(given) -> list[dict[str, str]]:
    """A conversation in either common layout as ``[{"role": "user", "content": "..."}, ...]``.

    given: a list of ``{"role", "content"}`` (a content may be a list of text parts) or of ``{"from", "value"}``, as in
    ShareGPT. Raises a :class:`QtutorError` that says what is missing, and in which message.
    """
    if not isinstance(given, list) or not given:
        raise QtutorError(f"{shown(given)} is no conversation: a list of messages is needed, at least one.")
    return [_message(message, number) for number, message in enumerate(given, start=1)]


def has_template(tokenizer) -> bool:
    """Whether the tokenizer has a template for conversations."""
    return bool(getattr(tokenizer, "chat_template", None))


def rendered(tokenizer, messages: list[dict[str, str]], ask: bool = False) -> str:
    """``messages`` (of :func:`messages_of`) as one text, special tokens included: tokenize it without adding any.

    ask: write up to the place where the next answer begins. Raises :class:`QtutorError` if the tokenizer has no
    template or several, and if the template fails or refuses these messages.
    """
    if not has_template(tokenizer):
        raise QtutorError(
            "the tokenizer has no chat template, so it is unknown how this model expects a conversation: it "
            "only continues texts. Use its instruct (or chat) version, or give plain texts."
        )
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    except RecursionError:
        raise QtutorError("the chat template never ends. Use the original model's tokenizer.") from None
    except Exception as error:  # a template may raise anything: its own refusals, TypeError, UndefinedError
        raise QtutorError(
            f"the chat template cannot write this conversation ({said(error)}). In most templates, user and assistant "
            "have to take turns, and the user begins."
        ) from error


def end_of_turn(tokenizer) -> list[int]:
    """The token with which the template ends an answer, as a list of one; empty if no special token does.

    Templates do not name this token. So an answer is written out, and the token after it is used. Some checkpoints name
    this token among the ends of a text in generation_config.json, and some forget it.
    """
    try:
        text = rendered(tokenizer, [{"role": "user", "content": "?"}, {"role": "assistant", "content": ANSWER}])
    except QtutorError:
        return []
    behind = text.rpartition(ANSWER)[2].lstrip()
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"][:1] if behind else []
    return [number for number in ids if number in set(tokenizer.all_special_ids) | set(_added(tokenizer))]


def _added(tokenizer) -> list[int]:
    """Added tokens that are special, whether or not the tokenizer has a name for them."""
    return [number for number, token in tokenizer.added_tokens_decoder.items() if token.special]


def _message(message, number: int) -> dict[str, str]:
    if not isinstance(message, dict):
        raise QtutorError(f"message {number} is {shown(message)}; an object with role and content is needed.")
    if "role" in message:
        role, content, keys = message["role"], message.get("content"), "role and content"
    else:
        role, content, keys = SPEAKERS.get(str(message.get("from")).lower()), message.get("value"), "from and value"
    if isinstance(content, list) and content and all(isinstance(part, dict) for part in content):
        texts = [part.get("text") for part in content]  # a picture has no text
        content = "".join(texts) if all(isinstance(text, str) for text in texts) else None
    if not isinstance(role, str) or not isinstance(content, str):
        raise QtutorError(
            f"message {number} has the keys {', '.join(map(shown, list(message)[:5])) or 'none'}; texts under "
            f"{keys} are needed."
        )
    return {"role": role, "content": content}
