"""The tokenizer in a checkpoint's folder, read by transformers after its files were checked.

A tokenizer_config.json may not name code, files elsewhere, or a class that is no tokenizer (``AutoModel`` would read
the folder once more, by its own rules).
"""

from pathlib import Path

import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from qtutor.errors import QtutorError, is_failure, naming, said, shown, warn
from qtutor.formats.documents import file_in, read_json
from qtutor.formats.gguf_reading import Opened
from qtutor.gguf.tokenizer_back import tokenizer_of

CONFIG = "tokenizer_config.json"
READ = (
    *("tokenizer.json", "tokenizer.model", CONFIG, "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "tekken.json", "vocab.txt", "spiece.model"),
)
REFUSED = ("auto_map", "init_inputs", "fast_tokenizer_files", "gguf_file", "tokenizer_object", "mistral_format")
PROBE = "def f(x):\n    return 1 + x  # é\n"


def tokenizer_in(folder: Path, config):
    """The tokenizer in ``folder``, for the decoder of ``config``. Raises :class:`QtutorError` naming what is wrong."""
    for name in READ:
        path = file_in(folder, name)  # refuses links that lead elsewhere
        if path is not None and path.suffix == ".json" and path.name != "tokenizer.json":
            _check(read_json(path), path)
    _check_class(getattr(config, "tokenizer_class", None), folder / "config.json")
    return tried(lambda: AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False), config, folder)


def tokenizer_in_gguf(opened: Opened, file: Path):
    """The tokenizer in a GGUF file's metadata, for the decoder that it holds."""
    with naming(str(file)):
        return tried(lambda: tokenizer_of(opened.file.metadata), opened.model.config, file)


def tried(make, config, where: Path):
    """The tokenizer that ``make`` returns, tried on a short text: an unusable one is refused before the long work."""
    try:
        tokenizer = make()
        ids = tokenizer(PROBE, verbose=False)["input_ids"]
    except QtutorError:
        raise
    except BaseException as error:
        if not is_failure(error):
            raise
        raise QtutorError(
            f"{where}: its tokenizer cannot be loaded ({said(error)}). Copy tokenizer.json and tokenizer_config.json "
            "of the original model into the folder."
        ) from error
    if not all(type(number) is int and 0 <= number < config.vocab_size for number in ids):
        raise QtutorError(
            f"{where}: its tokenizer makes ids up to {shown(max(ids))}, and the decoder knows {config.vocab_size:,} "
            "tokens. It is another model's: copy the original's tokenizer.json and tokenizer_config.json."
        )
    if set(ids) <= set(tokenizer.all_special_ids):
        found = f"special ones only ({ids[:8]})" if ids else "no tokens"
        raise QtutorError(
            f"{where}: its tokenizer loses text: from {PROBE!r} it makes {found}. A part of tokenizer.json is "
            "missing: copy the original model's tokenizer files again."
        )
    _say_what_is_beyond(tokenizer, config.vocab_size, where)
    return tokenizer


def _say_what_is_beyond(tokenizer, embedded: int, where: Path) -> None:
    """Warn of tokens that the decoder does not embed: somebody added them without the embedding. Others still work."""
    beyond = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= embedded)
    if beyond:
        some = ", ".join(f"{shown(token)} ({number})" for number, token in beyond[:5])
        warn(
            f"{where}: the decoder embeds {embedded:,} tokens, 0 to {embedded - 1}, and its tokenizer has "
            f"{len(beyond)} beyond: {some}{', ...' if len(beyond) > 5 else ''}. A text that holds one of them cannot "
            "be read. Take the checkpoint whose embedding has them, or remove them from tokenizer.json."
        )


def _check(values: dict, path: Path) -> None:
    for key in REFUSED:
        if values.get(key):
            raise QtutorError(
                f"{path} has {key} = {shown(values[key])}, which names code or files that build a tokenizer. No "
                "code from a checkpoint is ever run: remove the key if the tokenizer needs none."
            )
    _check_class(values.get("tokenizer_class"), path)


def _check_class(name, path: Path) -> None:
    """Refuse a class of transformers that is no tokenizer, which would read the folder by rules of its own."""
    if name is None:
        return
    found = []
    if isinstance(name, str):
        found = [getattr(transformers, own, None) for own in (name, name.removesuffix("Fast"))]
    wrong = [
        own
        for own in found
        if own is not None and not (isinstance(own, type) and issubclass(own, PreTrainedTokenizerBase))
    ]
    if not isinstance(name, str) or wrong:
        raise QtutorError(
            f"{path} has tokenizer_class = {shown(name)}, which is no tokenizer. Copy the original model's "
            f"tokenizer files again, or remove the key."
        )
