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


@pytest.fixture(params=["small_tokenizer", "story_tokenizer"])
def tokenizer(request):
    return request.getfixturevalue(request.param)
