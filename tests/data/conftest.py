import pytest

from jaxunlearn.data import corpus, train_tokenizer, training_texts


@pytest.fixture(scope="session")
def made():
    return corpus(seed=3, people=12, facts=4, holdout=3)


@pytest.fixture(scope="session")
def small_tokenizer(made):
    """The built-in corpus' own tokenizer: whole words, bytes for the rest."""
    return train_tokenizer(training_texts(made))


@pytest.fixture(scope="session")
def story_tokenizer(stories260k):
    """A real Llama tokenizer: byte-pair merges, a space put in front, byte fallback."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(stories260k)


@pytest.fixture(scope="session")
def trimming_tokenizer(made):
    """Like GPT-2's: offsets leave out the white space that a token begins with, and there is no begin token."""
    from tokenizers import processors

    tokenizer = train_tokenizer(training_texts(made))
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.bos_token = None
    return tokenizer


@pytest.fixture(params=["small_tokenizer", "story_tokenizer", "trimming_tokenizer"])
def tokenizer(request):
    return request.getfixturevalue(request.param)
