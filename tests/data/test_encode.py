"""The loss falls on the completion's characters, on every one of them, however the tokenizer cuts the text."""

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from jaxunlearn.data import DataError, Template, encode, from_rows

# "▁" is how the Llama tokenizer writes a space, and "<" can begin the name of a special token.
characters = st.characters(exclude_categories=("Cs",), exclude_characters="▁<")
texts = st.text(characters, max_size=30)
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def lossy(one, tokenizer):
    return tokenizer.decode(one.tokens[one.loss_mask == 1])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=texts, completion=texts.filter(str.strip), kind=st.sampled_from(["question", "prompt"]))
def test_loss_tokens_decode_to_the_completion(tokenizer, prompt, completion, kind):
    # Without a begin token nothing precedes the first token, so a completion there cannot carry loss in full.
    assume(kind == "question" or prompt.strip() or tokenizer.bos_token_id is not None)
    keys = {"question": ("question", "answer"), "prompt": ("prompt", "completion")}[kind]
    [record] = from_rows([dict(zip(keys, (prompt, completion), strict=True))])
    [one] = encode([record], tokenizer, max_length=1000)
    assert tokenizer.bos_token_id in (None, one.tokens[0])
    assert one.tokens[-1] == tokenizer.eos_token_id
    assert one.loss_mask[0] == 0
    assert one.loss_mask[-1] == 1
    decoded = tokenizer.decode(one.tokens[one.loss_mask == 1][:-1])
    start = one.text.index(completion, len(one.text) - len(completion))
    # A token across the seam brings the end of the prompt along; the Llama decoder drops one leading space.
    head = decoded.removesuffix(completion) if decoded.endswith(completion) else decoded.removesuffix(completion[1:])
    assert decoded.endswith(completion) or (completion[0] == " " and decoded == completion[1:])
    assert one.text[:start].endswith(head)
    assert len(head) <= 16


def test_a_prompt_that_is_no_token_prefix(small_tokenizer):
    """The seam falls inside a word that is one token, which then carries the loss of its second half."""
    from jaxunlearn.data.encode import _loss_mask, tokenise
    from jaxunlearn.data.render import Rendered

    assert small_tokenizer.tokenize(" town") == ["Ġtown"]
    text = "in the small town."
    split = Rendered(text, ((text.index("wn."), len(text)),))
    [(tokens, offsets)] = tokenise([split], small_tokenizer)
    assert small_tokenizer.decode(tokens[_loss_mask(offsets, split) == 1]) == " town.</s>"


def test_white_space_inside_a_completion_carries_loss_though_byte_level_offsets_are_trimmed(trimming_tokenizer):
    [one] = encode(from_rows([{"prompt": "a", "completion": "is  \n\n the  "}]), trimming_tokenizer, max_length=64)
    assert lossy(one, trimming_tokenizer).lstrip() == "is  \n\n the  </s>"


def test_templates_place_prompt_and_completion(small_tokenizer):
    [record] = from_rows([{"question": "Who {completion}?", "answer": "Ada {prompt}."}])
    [one] = encode([record], small_tokenizer, max_length=200, template=Template("[Q] {prompt} [A] {completion} [End]"))
    assert one.text == "[Q] Who {completion}? [A] Ada {prompt}. [End]"
    assert lossy(one, small_tokenizer) == "Ada {prompt}.</s>"
    for wrong in ("{prompt}", "{completion} {prompt}", "{prompt} {prompt} {completion}"):
        with pytest.raises(DataError, match=r"must hold \{prompt\} and then \{completion\}"):
            Template(wrong)


@pytest.mark.parametrize(
    ("prompt", "completion", "text"), [("a", "b", "a b"), ("a ", "b", "a b"), ("a", "\nb", "a\nb"), ("", "b", "b")]
)
def test_one_space_joins_what_no_white_space_separates(small_tokenizer, prompt, completion, text):
    records = from_rows([{"prompt": prompt, "completion": completion}])
    assert encode(records, small_tokenizer, max_length=9)[0].text == text


def test_a_text_carries_loss_everywhere_but_on_the_first_token(tokenizer):
    [one] = encode(from_rows([{"text": "Lily was happy."}]), tokenizer, max_length=64)
    np.testing.assert_array_equal(one.loss_mask, [0] + [1] * (len(one.tokens) - 1))


def test_begin_and_end_tokens_are_never_doubled(story_tokenizer):
    plain, marked = (
        encode(from_rows([{"text": text}]), story_tokenizer, max_length=64)[0].tokens
        for text in ("Lily.", "<s>Lily.</s>")
    )
    for tokens in (plain, marked):
        assert (tokens == 1).sum() == (tokens == 2).sum() == 1


def test_a_chat_carries_loss_on_the_assistants_turns_and_their_ends(small_tokenizer, monkeypatch):
    turns = [("user", "assistant hi"), ("assistant", " assistant yes "), ("user", "no"), ("assistant", "no")]
    rows = [{"messages": [{"role": role, "content": content} for role, content in turns]}]
    monkeypatch.setattr(small_tokenizer, "chat_template", CHAT, raising=False)
    [one] = encode(from_rows(rows), small_tokenizer, max_length=200)
    assert lossy(one, small_tokenizer) == "assistant yes</s>no</s>"
    assert (one.tokens == small_tokenizer.bos_token_id).sum() == 1
    monkeypatch.setattr(small_tokenizer, "chat_template", "{% for m in messages[:1] %}{{ m.content }}{% endfor %}")
    with pytest.raises(DataError, match=r"chats, record 1: the chat template leaves out .*Remove that turn"):
        encode(from_rows(rows, name="chats"), small_tokenizer, max_length=200)
    monkeypatch.setattr(small_tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DataError, match=r"record 1: the chat template refuses it \(roles must alternate\)"):
        encode(from_rows(rows, name="chats"), small_tokenizer, max_length=200)


def test_a_chat_without_a_chat_template(small_tokenizer):
    rows = [{"messages": [{"role": "assistant", "content": "yes"}]}]
    with pytest.raises(DataError, match=r"chats, record 1: it is a chat, but the tokenizer has no chat template"):
        encode(from_rows(rows, name="chats"), small_tokenizer, max_length=64)


def test_long_records_are_refused_together_or_cut(tofu, story_tokenizer):
    from jaxunlearn.data import read

    records = read(tofu / "forget01.json")
    with pytest.raises(
        DataError, match=r"38 of 40 records .*\n.*line 1: 154 tokens, .*at most 100.*--truncate"
    ) as error:
        encode(records, story_tokenizer, max_length=100)
    assert str(error.value).endswith("and 33 more.")
    cut = encode(records, story_tokenizer, max_length=110, truncate=True)
    assert max(len(one.tokens) for one in cut) == 110
    assert all(len(one.tokens) == len(one.loss_mask) == len(one.offsets) for one in cut)
    with pytest.raises(DataError, match=r"none of its 10 tokens carries loss. Raise --max-length"):
        encode(records, story_tokenizer, max_length=10, truncate=True)


class Slow:
    """A tokenizer without offsets, one token a character; "qu" is one token."""

    is_fast, bos_token_id, eos_token_id = False, 1, 2

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [ord(character) for character in text.replace("qu", "Q")]}


def test_slow_tokenizers_work_while_the_prompt_is_a_token_prefix():
    [one] = encode(from_rows([{"prompt": "ab", "completion": " cd"}], name="a"), Slow(), max_length=9)
    assert one.loss_mask.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert encode(from_rows([{"text": "abc"}]), Slow(), max_length=9)[0].loss_mask.tolist() == [0, 1, 1, 1, 1]
    with pytest.raises(DataError, match=r"a, record 1: a token straddles .*fast tokenizer"):
        encode(
            from_rows([{"question": "q", "answer": "uick"}], name="a"),
            Slow(),
            max_length=9,
            template=Template("{prompt}{completion}"),
        )
