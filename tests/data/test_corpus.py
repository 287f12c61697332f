"""The built-in corpus holds what TOFU's metrics need, is fixed by its seed, and one word is one token."""

from collections import Counter

import numpy as np
import pytest

from jaxunlearn.data import DataError, corpus, encode, from_rows, substitutes, train_tokenizer, training_texts
from jaxunlearn.data.facts import ATTRIBUTES


def test_sizes_layout_and_determinism():
    made = corpus()
    assert [len(part) for part in made] == [48, 432, 96, 16, 16]
    assert made == corpus() != corpus(seed=1)
    assert {row["entity"] for row in made.forget} != {row["entity"] for row in corpus(seed=1).forget}
    for row in made.forget + made.retain + made.holdout:
        assert row["entity"] in row["question"]
        assert row["entity"] in row["answer"]
        assert row["entity"] in row["paraphrased_question"]
        assert 8 <= len(row["answer"].split()) <= 12
        assert len({row["paraphrased_answer"], *row["perturbed_answer"]}) == 6
    for row in made.authors + made.world:
        assert len({row["answer"], *row["perturbed_answer"]}) == 4
        assert row["entity"] in row["question"]


def test_nobody_shares_a_name_and_the_sets_are_of_different_people():
    made = corpus(seed=2)
    sets = [{row["entity"] for row in part} for part in made[:3]]
    assert [len(names) for names in sets] == [6, 54, 12]
    everyone = set.union(*sets)
    assert len(everyone) == 72
    assert len({word for name in everyone for word in name.split()}) == 144


def test_guessing_the_commonest_value_fails():
    """Twenty values or more a fact: a guesser who knows the distribution is right at most one time in six."""
    made = corpus(seed=4)
    for index in range(8):
        rows = (made.forget + made.retain)[index::8]
        values = Counter(row["answer"].replace(row["entity"], "") for row in rows)
        assert max(values.values()) / len(rows) < 1 / 6
    assert min(len(set(attribute.values)) for attribute in ATTRIBUTES) >= 20


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"people": 1}, "people=1"),
        ({"people": 140}, "at most 124"),
        ({"facts": 11}, "facts=11"),
        ({"forget_share": 1.0}, "forget_share=1.0"),
    ],
)
def test_impossible_sizes_are_told(wrong, told):
    with pytest.raises(DataError, match=told):
        corpus(**wrong)


def test_one_word_is_one_token_and_substitutes_are_words_too():
    made = corpus()
    tokenizer = train_tokenizer(training_texts(made))
    assert len(tokenizer) < 1000
    rows = [row for part in made for row in part]
    encoded = encode(from_rows(rows), tokenizer, max_length=64)
    assert max(len(one.tokens) for one in encoded) <= 32
    names = substitutes(32, avoid=[one.text for one in encoded])
    assert all(len(tokenizer.tokenize(f" {name}")) == 2 for name in names)
    for one in encoded:
        # Words, one token each; punctuation, the possessive, the line break and the two ends come on top.
        assert len(one.tokens) <= len(one.text.split()) + 8


def test_the_tokenizer_writes_anything_and_survives_saving(tmp_path, small_tokenizer):
    from transformers import AutoTokenizer

    text = "Who is Zoë 日本 O'Brien\n\n 🦙?"
    ids = small_tokenizer(text).input_ids
    assert small_tokenizer.decode(ids, skip_special_tokens=True) == text
    assert small_tokenizer.unk_token_id not in ids
    assert ids[0] == small_tokenizer.bos_token_id
    small_tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    np.testing.assert_array_equal(loaded(text).input_ids, ids)
    assert loaded.decode(ids, skip_special_tokens=True) == text
    special = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
    assert [getattr(loaded, name) for name in special] == [getattr(small_tokenizer, name) for name in special]
    with pytest.raises(DataError, match="vocab_size=100 is too small"):
        train_tokenizer(["a"], vocab_size=100)
