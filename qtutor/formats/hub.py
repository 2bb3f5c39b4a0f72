"""A checkpoint on the hub becomes a folder: the files that qtutor reads are downloaded, and no others.

No pickles, no code, no second copy of the weights in another format. Files that were downloaded once are available
without network. Files in a repository of GGUF files are found by :mod:`.hub_gguf`.
"""

import re
from pathlib import Path

from qtutor.errors import QtutorError, said, shown
from qtutor.formats import hub_gguf
from qtutor.formats.checkpoint import CONFIG, INDEX, WEIGHTS, check_family

IDS = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
ABOUT = (CONFIG, INDEX, "generation_config.json", "qtutor.json", "hf_quant_config.json", "quantize_config.json")
TOKENIZER = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja"),
)


def folder_of(source: str) -> Path:
    """The local folder of a hub id. Raises :class:`QtutorError` if it cannot be downloaded."""
    from huggingface_hub import snapshot_download  # slow to import, and not needed for a local folder

    if not IDS.fullmatch(source):
        raise QtutorError(
            f"{shown(source, 200)}: no such folder here, and it is no hub id like 'owner/name'. Check the spelling."
        )
    try:
        small = Path(snapshot_download(source, allow_patterns=[*ABOUT, *TOKENIZER]))
        if not (small / CONFIG).is_file():
            raise QtutorError(
                f"{source}: the repository has no config.json, so it holds no checkpoint. {hub_gguf.types_of(source)}"
            )
        check_family(small)  # before gigabytes are downloaded
        weights = ["model-*-of-*.safetensors"] if (small / INDEX).is_file() else [WEIGHTS]
        return Path(snapshot_download(source, revision=small.name, allow_patterns=weights))
    except QtutorError:
        raise
    except Exception as error:  # huggingface_hub and the network fail in many ways
        raise QtutorError(
            f"{source}: no such folder here, and it could not be fetched as a hub id ({said(error)}). Check the "
            "spelling; without network, pass a folder with config.json, tokenizer.json and *.safetensors."
        ) from error
