"""Tokenizers come from Hugging Face `tokenizers`; here they are only found, loaded and copied."""

import shutil
from pathlib import Path
from typing import Any

from jaxunlearn.models.loading import resolve

GENERATION_CONFIG = "generation_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    GENERATION_CONFIG,
)


def load_tokenizer(folder: str | Path) -> Any:
    """The Hugging Face tokenizer of a checkpoint folder or hub id. Code in the checkpoint is never run.

    Raises:
        ValueError: when the folder holds no tokenizer.
    """
    path = resolve(folder)
    if not any((path / name).is_file() for name in TOKENIZER_FILES[:3]):
        raise ValueError(
            f"{path} holds no tokenizer ({', '.join(TOKENIZER_FILES[:3])}); copy the tokenizer files there"
        )
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:
        raise ValueError(f"the tokenizer in {path} cannot be loaded: {error}") from error


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer files and the generation settings of `source`, unchanged."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
