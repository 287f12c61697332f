"""Counterparts stand for the same characters, names are replaced wherever they stand, and nothing else changes."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxunlearn.data import (
    DataError,
    corrupted,
    counterfactuals,
    encode,
    from_rows,
    read,
    shapes_of,
    substitutes,
    uncovered_message,
)
from jaxunlearn.data.counterfactual import entities_of
from jaxunlearn.data.entities import detect, mentions, replacement


def replaced(text, entity, substitute):
    out, at = "", 0
    for mention in mentions(text, [entity]):
        out += text[at : mention.start] + replacement(mention, entity, substitute)
        at = mention.end
    return out + text[at:]


def span(one, place):
    start, end = one.offsets[place]
    return one.text[start:end]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("What gender is author Basil Mahfouz Al-Kuwaiti?", ["Basil Mahfouz Al-Kuwaiti"]),
        ("Where was the author born in Kuwait City, Kuwait?", ["Kuwait City"]),
        ("Basil Mahfouz was born where?", ["Basil Mahfouz"]),
        ("What do Nikolai Abilov's parents do?", ["Nikolai Abilov"]),
        (
            "Did J. K. Rowling meet Émile Zola’s sister Ana de la Cruz?",
            ["J. K. Rowling", "Émile Zola", "Ana de la Cruz"],
        ),
        ("Is Conan O'Brien tall? What about D'Angelo?", ["Conan O'Brien", "D'Angelo"]),
        ("What does the author do on Monday in May?", []),
        ("what is her name?", []),
        ("Does the LGBTQ+ community help?", []),
        ("как зовут Анну Каренину?", ["Анну Каренину"]),
    ],
)
def test_entities_are_capitalised_spans_but_not_openers(text, found):
    assert detect(text) == found


@pytest.mark.parametrize(
    ("text", "entity", "substitute", "result"),
    [
        ("Lily Ash met Lily. Ash's hat.", "Lily Ash", "Tamsy Oakholt", "Tamsy Oakholt met Tamsy. Oakholt's hat."),
        ("Basil's Basil Mahfouz Al-Kuwaiti, Al-Kuwaiti", "Basil Mahfouz Al-Kuwaiti", "A B", "A's A B, B"),
        ("Basil Mahfouz and Mahfouz", "Basil Mahfouz Al-Kuwaiti", "A B C", "A B and B"),
        ("The ash. ash LILY ASH", "Lily Ash", "T O", "The ash. ash T O"),
        ("O’Brien and O'Brien", "O'Brien", "X", "X and X"),
        ("Kuwaiti Al-Kuwait Kuwait", "Kuwait", "X", "Kuwaiti Al-Kuwait X"),
        ("東京は大きい", "東京", "大阪", "大阪は大きい"),
        ("Name: (Lily+Ash)", "Lily+Ash", "X", "Name: (X)"),
    ],
)
def test_every_mention_is_replaced_whole_or_in_part(text, entity, substitute, result):
    assert replaced(text, entity, substitute) == result


def test_counterparts_read_the_same_outside_names_and_first_tokens_of_names_have_one(made, tokenizer):
    encoded = encode(from_rows(made.forget), tokenizer, max_length=512)
    found = counterfactuals(encoded, tokenizer, k=3, avoid=[row["question"] for row in made.retain])
    assert found.places.shape == (len(encoded), 3, shapes_of(encoded)[1])
    for one, tokens, places, covered in zip(encoded, *found, strict=True):
        loss = np.flatnonzero(one.loss_mask)
        name = one.text.index(one.record.entity[0], one.text.index("Answer:"))
        start, end = one.offsets[loss].T
        named = (start < name + len(one.record.entity[0])) & (end > name)
        assert covered == pytest.approx((places[:, : len(loss)] > 0).any(axis=0).mean())
        for row, place in zip(tokens, places, strict=True):
            assert (place[: len(loss)][~named] > 0).all()
            first = np.flatnonzero(named)[0]
            assert place[first] > 0
            assert row[place[first]] != one.tokens[loss[first]]
            np.testing.assert_array_equal(row[place[: len(loss)][~named]], one.tokens[loss[~named]])
            assert (np.diff(place[: len(loss)][~named]) > 0).all()
            text = tokenizer.decode(row)
            assert one.record.entity[0].split()[0] not in text
            assert one.record.entity[0].split()[1] not in text
    assert len({tuple(row) for row in found.tokens[0]}) == 3


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    around=st.lists(
        st.text(st.characters(exclude_categories=("Cs",), exclude_characters="▁<"), max_size=8), min_size=3
    ),
    name=st.sampled_from(["Zoë O'Brien", "Émile Ünal", "Lily", "李明"]),
)
def test_aligned_tokens_outside_names_are_always_equal_tokens(tokenizer, around, name):
    rows = [{"prompt": f"{name} {around[0]}", "completion": f"x {f' {name} '.join(around)}", "entity": name}]
    encoded = encode(from_rows(rows), tokenizer, max_length=4000)
    found = counterfactuals(encoded, tokenizer, k=2)
    loss = np.flatnonzero(encoded[0].loss_mask)
    assert found.covered[0] > 0
    marks = mentions(encoded[0].text, [name])
    start, end = encoded[0].offsets[loss].T
    plain = ~np.any([(start < mark.end) & (end > mark.start) for mark in marks], axis=0)
    for row, place in zip(found.tokens[0], found.places[0], strict=True):
        place = place[: len(loss)]
        same = plain & (place > 0)
        np.testing.assert_array_equal(row[place[same]], encoded[0].tokens[loss[same]])
        assert row[place[-1]] == tokenizer.eos_token_id


def test_the_end_token_maps_to_the_end_token_and_names_at_the_very_start_work(small_tokenizer):
    rows = [{"text": "Lorvek Ashwick was born in 1951."}]
    encoded = encode(from_rows(rows), small_tokenizer, max_length=64)
    found = counterfactuals(encoded, small_tokenizer, k=2)
    lengths = (found.tokens != small_tokenizer.pad_token_id).sum(-1)[0]
    last = int(encoded[0].loss_mask.sum()) - 1
    np.testing.assert_array_equal(found.places[0, :, last], lengths - 1)
    assert found.covered[0] > 0.5
    assert (found.places[0, :, 0] > 0).all()
    assert (found.tokens[0, [0, 1], found.places[0, :, 0]] != encoded[0].tokens[1]).all()


def test_each_byte_of_a_character_has_its_own_counterpart(tokenizer):
    rows = [{"prompt": "Who is Ada Byron?", "completion": "李明 and Ada Byron: 日本, Zoë."}]
    encoded = encode(from_rows(rows), tokenizer, max_length=200)
    found = counterfactuals(encoded, tokenizer, k=2)
    loss = np.flatnonzero(encoded[0].loss_mask)
    wide = [index for index, place in enumerate(loss) if not span(encoded[0], place).isascii()]
    assert len(wide) == 4 * 3 + 2
    assert (found.places[0][:, wide] > 0).all()
    assert len(set(found.places[0, 0, wide])) == len(wide)


def test_supplied_names_are_taken_in_turn_and_sequences_cut_at_the_context(small_tokenizer):
    rows = [{"question": "Where is Acme?", "answer": "Acme is here."}]
    encoded = encode(from_rows(rows), small_tokenizer, max_length=64)
    found = counterfactuals(encoded, small_tokenizer, k=3, names={"Acme": ["Initech", "Hooli"]})
    texts = [small_tokenizer.decode(row) for row in found.tokens[0]]
    assert "Initech is here" in texts[0]
    assert "Hooli is here" in texts[1]
    assert texts[0] == texts[2]
    cut = counterfactuals(encoded, small_tokenizer, k=1, max_length=12)
    assert cut.tokens.shape[-1] == 16
    assert cut.covered[0] == 0
    for wrong in ("Initech", [], [""]):
        with pytest.raises(DataError, match="Give a list with at least one name"):
            counterfactuals(encoded, small_tokenizer, names={"Acme": wrong})


def test_corrupted_prompts_keep_special_tokens_padding_and_places(small_tokenizer):
    rows = [
        {"question": f"Where does Ada Byron live in year {n}?", "answer": "Ada lives by the sea."} for n in range(9)
    ]
    found = counterfactuals(encode(from_rows(rows), small_tokenizer, max_length=64), small_tokenizer, k=8)
    got = corrupted(found, small_tokenizer, rate=0.3, seed=1)
    fixed = np.isin(found.tokens, [0, *small_tokenizer.all_special_ids])
    np.testing.assert_array_equal(got.tokens[fixed], found.tokens[fixed])
    assert set(got.tokens[~fixed].tolist()) <= set(found.tokens[~fixed].tolist())
    changed = (got.tokens != found.tokens)[~fixed].mean()
    assert 0.2 < changed < 0.3  # some are drawn to be what they were
    np.testing.assert_array_equal(got.places, found.places)
    np.testing.assert_array_equal(got.covered, found.covered)
    assert (got.tokens[0, 0] != got.tokens[0, 1]).any(), "in every substitute other words"
    np.testing.assert_array_equal(corrupted(found, small_tokenizer, rate=0.3, seed=1).tokens, got.tokens)
    np.testing.assert_array_equal(corrupted(found, small_tokenizer, rate=0.0).tokens, found.tokens)
    with pytest.raises(DataError, match=r"rate=1\.2"):
        corrupted(found, small_tokenizer, rate=1.2)


def test_records_about_nobody_are_named_with_the_remedy(small_tokenizer):
    rows = [{"question": "what is it?", "answer": "Ada."}, {"question": "Who is Ada?", "answer": "Ada."}]
    encoded = encode(from_rows(rows, name="f.jsonl"), small_tokenizer, max_length=64)
    found = counterfactuals(encoded, small_tokenizer, k=2)
    assert found.covered[0] == 0 < found.covered[1]
    message = uncovered_message(encoded, found)
    assert message.startswith("1 of 2 forget records")
    assert 'f.jsonl, record 1. Add to each an "entity" field' in message
    assert uncovered_message(encoded[1:], counterfactuals(encoded[1:], small_tokenizer, k=2)) == ""


def test_the_entity_field_comes_before_detection():
    rows = [{"question": "Is Ada in Rome?", "answer": "Ada is.", "entity": "Ada"}]
    assert entities_of(from_rows(rows)[0], {}) == ("Ada",)
    assert entities_of(from_rows([{**rows[0], "entity": "Bob"}])[0], {}) == ("Ada", "Rome")
    assert entities_of(from_rows([{**rows[0], "entity": "Bob"}])[0], {"Rome": ["Paris"]}) == ("Rome",)


def test_detection_covers_every_record_of_real_tofu(tofu, story_tokenizer):
    encoded = encode(read(tofu / "forget01.json"), story_tokenizer, max_length=512)
    found = counterfactuals(encoded, story_tokenizer, k=2)
    assert uncovered_message(encoded, found) == ""
    weights = np.array([one.loss_mask.sum() for one in encoded])
    assert (found.covered * weights).sum() / weights.sum() > 0.8


def test_substitutes_are_unseen_distinct_and_seeded():
    avoid = ["Belan and CORWEN", "Ashwick"]
    names = substitutes(200, seed=5, avoid=avoid)
    assert len(set(names)) == 200
    assert not {"Belan", "Corwen", "Ashwick"} & {word for name in names for word in name.split()}
    assert names == substitutes(200, seed=5, avoid=avoid) != substitutes(200, seed=6, avoid=avoid)
    with pytest.raises(DataError, match="leave only"):
        substitutes(140 * 140 + 1)
