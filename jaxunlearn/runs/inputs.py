"""Everything a run reads, checked before anything is compiled."""

from pathlib import Path
from typing import Any, NamedTuple

from jaxunlearn import data, models
from jaxunlearn.runs.settings import Text


class Reader(NamedTuple):
    """Reads record files for one model.

    Attributes:
        tokenizer: the model's.
        max_length: longest sequence, tokens.
        text: how records become text.
    """

    tokenizer: Any
    max_length: int
    text: Text

    def read(self, *sources: str) -> list[data.Encoded]:
        """Records of all sources, encoded."""
        records = [record for source in sources for record in data.read(source, fields=self.text.fields)]
        return self.encode(records)

    def encode(self, records: list[data.Record]) -> list[data.Encoded]:
        return data.encode(
            records,
            self.tokenizer,
            max_length=self.max_length,
            template=self.text.template,
            truncate=self.text.truncate,
        )


def reader(model: str | Path, text: Text) -> Reader:
    """A reader for the checkpoint at `model`: tokenizer and config only, no weights.

    Raises:
        ValueError: the folder is no checkpoint, or `--max-length` is more than its context.
    """
    folder = models.resolve(model)
    context = models.read_config(folder).max_position_embeddings
    if text.max_length is not None and not 2 <= text.max_length <= context:
        raise ValueError(
            f"--max-length {text.max_length}: {model} has a context of {context} tokens; use 2 to {context}"
        )
    return Reader(models.load_tokenizer(folder), text.max_length or context, text)


def rows_of(
    encoded: list[data.Encoded], pack: int | None, model: str | Path
) -> list[data.Encoded] | list[data.PackedRow]:
    """The records, or with `pack` rows of that many tokens that several of them share.

    Raises:
        ValueError: rows are longer than the model's context, or shorter than a record.
    """
    if pack is None:
        return encoded
    context = models.read_config(models.resolve(model)).max_position_embeddings
    longest = max(len(one.tokens) for one in encoded)
    if not longest <= pack <= context:
        raise ValueError(
            f"--pack {pack}: rows hold the longest record, {longest} tokens, and fit in the context of {model}; use "
            f"{longest} to {context}"
        )
    return data.pack(encoded, pack)
