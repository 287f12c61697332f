"""A small tokenizer for small corpora: whole words where known, bytes where not.

Text is cut into words as GPT-2 does it (byte-level, a word keeps the space before it), and a unigram model (Kudo 2018)
picks the segmentation of highest score. Known words score so much better than bytes that each is one token; any other
word, in any script, is still written without an unknown token. On a corpus of a few hundred words a vocabulary below
a thousand then holds every word, where merges of byte pairs would spend it on fragments.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from jaxunlearn.data.errors import DataError

BEGIN, END, UNKNOWN, PAD = "<s>", "</s>", "<unk>", "<pad>"
_WORD_SCORE, _BYTE_SCORE = -1.0, -10.0


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> Any:
    """A `transformers.PreTrainedTokenizerFast` whose vocabulary holds the commonest words of `texts`.

    Args:
        texts: what the model will read, as it will read it (after the template).
        vocab_size: the most entries: 4 special tokens, 256 bytes, words by frequency.

    Raises:
        DataError: `vocab_size` leaves no room for the special tokens and the bytes.

    Example:
        >>> tokenizer = train_tokenizer(["the cat sat on the mat"])
        >>> tokenizer.tokenize("the cat"), tokenizer.decode(tokenizer("the dög").input_ids)
        (['the', 'Ġcat'], '<s>the dög')
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = [PAD, BEGIN, END, UNKNOWN]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    room = vocab_size - len(special) - len(alphabet)
    if room < 0:
        raise DataError(f"vocab_size={vocab_size} is too small: bytes and special tokens take {vocab_size - room}.")
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    counts = Counter(word for text in texts for word, _ in cut.pre_tokenize_str(text) if len(word) > 1)
    words = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:room]]
    vocabulary = [(token, 0.0) for token in special]
    vocabulary += [(token, _BYTE_SCORE) for token in alphabet] + [(word, _WORD_SCORE) for word in words]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=special.index(UNKNOWN)))
    backend.pre_tokenizer = cut
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, special.index(BEGIN))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BEGIN,
        eos_token=END,
        unk_token=UNKNOWN,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )
