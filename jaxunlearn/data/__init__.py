"""Data: files to records, records to tokens and loss masks, those to batches of one shape; all numpy, on the host.

`read` a file, `check_overlap` of forget and retain set, `encode`, then `batches` or `pair`. `counterfactuals` asks the
forget questions about people who do not exist; `corpus` and `train_tokenizer` make data out of nothing.
"""

from jaxunlearn.data.batches import PairStep, Step, batches, collate, filled, pair, shapes_of, steps_per_epoch
from jaxunlearn.data.corpus import Corpus, corpus, training_texts
from jaxunlearn.data.counterfactual import Counterfactuals, corrupted, counterfactuals, uncovered_message
from jaxunlearn.data.encode import Encoded, encode
from jaxunlearn.data.errors import DataError
from jaxunlearn.data.names import substitutes
from jaxunlearn.data.packing import PackedRow, pack
from jaxunlearn.data.poisson import PoissonSample, poisson_batches
from jaxunlearn.data.records import Fields, Record, check_overlap, from_rows, normalised, read
from jaxunlearn.data.render import Template, prompt_text
from jaxunlearn.data.tokenizer import train_tokenizer

__all__ = [
    "Corpus",
    "Counterfactuals",
    "DataError",
    "Encoded",
    "Fields",
    "PackedRow",
    "PairStep",
    "PoissonSample",
    "Record",
    "Step",
    "Template",
    "batches",
    "check_overlap",
    "collate",
    "corpus",
    "corrupted",
    "counterfactuals",
    "encode",
    "filled",
    "from_rows",
    "normalised",
    "pack",
    "pair",
    "poisson_batches",
    "prompt_text",
    "read",
    "shapes_of",
    "steps_per_epoch",
    "substitutes",
    "train_tokenizer",
    "training_texts",
    "uncovered_message",
]
