"""What evaluation costs: the scoring pass beside a bare forward pass, generation beside torch's, in one process.

* *bare forward*: the same batches, on the device beforehand; logits at the loss tokens and nothing else.
* *scoring pass*: `evals.score` as users call it: batches made and sent, log-probs, arg-max hits and both moments over
  the vocabulary taken, results brought to the host and cut into rows.
* *generation*: `models.generate` and, where torch is installed, `generate` of transformers on the same weights and
  prompts, greedy, with a cache; both write the same tokens, which is checked.

All are called once a round, interleaved, so that a busy moment of the machine hits them alike; the table gives medians
and the ratio is of medians. Real tokens count, padding does not.

    python benchmarks/evaluation.py
    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/evaluation.py --clock processor
    python benchmarks/evaluation.py --hidden 512 --layers 8 --vocabulary 32000 --rounds 5 --json evaluation.json
"""

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np
from measure import markdown, where

from jaxunlearn import models
from jaxunlearn.data import Encoded
from jaxunlearn.evals import score
from jaxunlearn.evals.batching import bucketed
from jaxunlearn.runs.throughput import samples


def main() -> None:
    asked = _arguments()
    where_and_when = where()
    config = models.DecoderConfig(
        vocab_size=asked.vocabulary,
        hidden_size=asked.hidden,
        intermediate_size=asked.hidden * 11 // 4,
        num_hidden_layers=asked.layers,
        num_attention_heads=max(1, asked.hidden // 64),
        num_key_value_heads=max(1, asked.hidden // 64),
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    model, params = models.init(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    texts = _texts(rng, asked.texts, asked.vocabulary)
    prompts = [rng.integers(3, asked.vocabulary, asked.prompt).tolist() for _ in range(asked.prompts)]
    scoring = _scoring(model, params, texts, asked.batch_size)
    writing = _writing(model, params, prompts, asked.new)
    clock = {"wall": time.perf_counter, "processor": time.process_time}[asked.clock]
    seconds = samples(scoring, asked.rounds, clock) | samples(writing, asked.rounds, clock, pause=0.5)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(
        f"Decoder of {size:,} parameters (vocabulary {asked.vocabulary}, hidden {asked.hidden}, {asked.layers} layers)."
    )
    print(f"{asked.texts} texts of 24 to 250 tokens, batches of {asked.batch_size}.\n")
    real = sum(len(text.tokens) for text in texts)
    print(_table("scoring", scoring, seconds, real, "bare forward"), end="\n\n")
    print(f"{asked.prompts} prompts of {asked.prompt} tokens, {asked.new} new ones each, greedy.\n")
    print(_table("generation", writing, seconds, asked.prompts * asked.new, "torch generate"), end="\n\n")
    print(where_and_when)
    if asked.json:
        with open(asked.json, "w", encoding="utf-8") as file:
            json.dump({"where": where_and_when, "arguments": vars(asked), "seconds": seconds}, file, indent=1)


def _texts(rng: np.random.Generator, count: int, vocabulary: int) -> list[Encoded]:
    found = []
    for length in rng.integers(24, 250, count):
        mask = np.ones(length, np.float32)
        mask[0] = 0
        tokens = rng.integers(3, vocabulary, length).astype(np.int32)
        found.append(Encoded(tokens, mask, np.zeros((length, 2), np.int32), "", None))
    return found


def _scoring(model, params, texts, batch_size) -> dict[str, Callable[[], object]]:
    batches = [jax.device_put(batch) for _, batch in bucketed(texts, batch_size)]
    forward = jax.jit(lambda params, batch: batch.predict(model, params).logits)
    runs = {
        "bare forward": lambda: [jax.block_until_ready(forward(params, batch)) for batch in batches],
        "scoring pass": lambda: score(model, params, texts, batch_size=batch_size),
    }
    for run in runs.values():
        run()
    return runs


def _writing(model, params, prompts, new) -> dict[str, Callable[[], object]]:
    runs: dict[str, Callable[[], object]] = {
        "jaxunlearn generate": lambda: models.generate(model, params, prompts, max_new_tokens=new)
    }
    ours = runs["jaxunlearn generate"]()
    if importlib.util.find_spec("torch") is not None:
        import torch
        from transformers import AutoModelForCausalLM

        with tempfile.TemporaryDirectory() as folder:
            models.save(f"{folder}/model", model, params)
            peer = AutoModelForCausalLM.from_pretrained(f"{folder}/model", dtype=torch.float32)
        tokens = torch.tensor(prompts)
        options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        options["attention_mask"] = torch.ones_like(tokens)

        def theirs() -> torch.Tensor:
            with torch.inference_mode():
                return peer.generate(tokens, **options)[:, tokens.shape[1] :]

        same = np.mean(np.array(ours) == theirs().numpy())
        print(f"Of the tokens both write, {100 * same:.1f}% are the same.\n")
        runs["torch generate"] = theirs
    return runs


def _table(what: str, runs: dict, seconds: dict[str, list[float]], tokens: int, unit: str) -> str:
    medians = {name: statistics.median(seconds[name]) for name in runs}
    rows = [
        (name, f"{1e3 * value:.0f}", f"{tokens / value:.0f}", f"{medians[unit] / value:.2f}" if unit in medians else "")
        for name, value in medians.items()
    ]
    return markdown((what, "median, ms", "tokens/s", f"speed / {unit}"), rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {
        "hidden": 256,
        "layers": 8,
        "vocabulary": 4096,
        "texts": 64,
        "batch-size": 16,
        "prompts": 8,
        "prompt": 32,
        "new": 64,
        "rounds": 5,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall", help="default wall")
    parser.add_argument("--json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
