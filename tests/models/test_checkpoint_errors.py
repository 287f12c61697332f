"""A folder that is not a usable checkpoint is refused with one message that says what to do."""

import json
import shutil

import jax
import numpy as np
import pytest
from decoder_cases import CONFIGS, LLAMA3_ROPE, SMALL, toy
from safetensors.numpy import load_file, save_file

from jaxunlearn import models


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    model, params = toy()
    return models.save(folder, model, params)


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))


def test_all_misfitting_tensors_are_in_one_message(folder):
    def change(tensors):
        del tensors["model.layers.1.self_attn.q_proj.weight"]
        tensors["model.surprise"] = np.zeros(3, np.float32)
        tensors["model.norm.weight"] = np.zeros(5, np.float32)
        tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(np.int8)

    rewrite(folder, change)
    with pytest.raises(ValueError, match="do not fit its config") as caught:
        models.load(folder)
    message = str(caught.value)
    assert "missing (1): model.layers.1.self_attn.q_proj.weight" in message
    assert "unexpected (1): model.surprise" in message
    assert "model.norm.weight is [5], config.json asks for [24]" in message
    assert "lm_head.weight is I8" in message


def test_buffers_of_old_checkpoints_and_a_repeated_tied_head_are_ignored(tmp_path):
    model, params = toy(tie_word_embeddings=True)
    folder = models.save(tmp_path / "tied", model, params)

    def change(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3, np.float32)

    rewrite(folder, change)
    _, loaded = models.load(folder)
    assert jax.tree.structure(loaded) == jax.tree.structure(params)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "mamba"}, "model_type='mamba' is not implemented"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "rope_type='yarn'"),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            "quantised weights are not implemented; save the",
        ),
        ({"sliding_window": 128}, "sliding-window attention"),
        ({"hidden_act": "quick_gelu"}, "hidden_act='quick_gelu'"),
        ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads=3"),
    ],
)
def test_what_is_not_implemented_is_named(folder, fields, message):
    edit_config(folder, **fields)
    with pytest.raises(ValueError, match=message) as caught:
        models.load(folder)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize("target", ["../other.safetensors", "/etc/other.safetensors", "sub/x.safetensors", "x.bin"])
def test_an_index_may_not_lead_out_of_its_folder(folder, target):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": target}}))
    with pytest.raises(ValueError, match="may only name .safetensors files of its own folder"):
        models.load(folder)


def test_damaged_and_missing_files_are_named(folder, tmp_path):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a readable safetensors file"):
        models.load(folder)
    weights.unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(ValueError, match="model-00001-of-00002.safetensors is listed in .* but does not exist"):
        models.load(folder)
    index.write_text("{")
    with pytest.raises(ValueError, match="is not a safetensors index"):
        models.load(folder)
    index.unlink()
    with pytest.raises(ValueError, match="holds neither model.safetensors nor"):
        models.load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"only pickle weights \(pytorch_model.bin\).*convert"):
        models.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        models.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json does not exist"):
        models.load(folder)
    with pytest.raises(ValueError, match="is not a folder; give a checkpoint folder"):
        models.load(tmp_path / "nowhere")


def test_many_entries_that_lead_to_one_wrong_place_are_one_problem(folder):
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, "../x")}))
    with pytest.raises(ValueError, match="an index may only name") as caught:
        models.load(folder)
    assert str(caught.value).count("../x") == 1
    assert f"and {len(names) - 12} more" in str(caught.value)


def test_folders_that_are_often_mistaken_for_a_checkpoint_are_told_from_one(folder, tmp_path):
    weights = folder / "model.safetensors"
    with pytest.raises(ValueError, match=f"did you mean {folder}"):
        models.load(tmp_path)
    weights.rename(folder / "consolidated.safetensors")
    with pytest.raises(ValueError, match=r"holds consolidated.safetensors, but neither model.safetensors nor"):
        models.load(folder)
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ValueError, match=r"model.safetensors is a Git LFS pointer.*run `git lfs pull`"):
        models.load(folder)
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(ValueError, match=r"these are adapters, and not a model.*models.load_adapters"):
        models.load(folder)


def test_save_overwrites_nothing_and_leaves_nothing_half_done(folder, tmp_path):
    model, params = toy()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="exists already and is not an empty folder"):
        models.save(folder, model, params)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    broken = params | {"norm": {"scale": params["norm"]["scale"][:3]}}
    del broken["lm_head"]
    with pytest.raises(ValueError, match="norm/scale is .3., the model has .24.; lm_head/kernel is missing"):
        models.save(tmp_path / "broken", model, broken)
    for size in ("5 parsecs", 0, "-1GB", "nan"):
        with pytest.raises(ValueError, match="max_shard_size=.*give bytes, or a size such as"):
            models.save(tmp_path / "broken", model, params, max_shard_size=size)
    with pytest.raises(ValueError, match="is not a folder; pass a tokenizer"):
        models.save(tmp_path / "broken", model, params, tokenizer="nowhere")

    class Failing:
        def save_pretrained(self, folder):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        models.save(tmp_path / "broken", model, params, tokenizer=Failing())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]

    (tmp_path / "empty").mkdir()
    models.save(tmp_path / "empty", model, params, card="# Card\n")
    assert (tmp_path / "empty" / "README.md").read_text() == "# Card\n"


def test_shards_respect_the_size_limit_and_cover_every_tensor(saved, tmp_path):
    model, params = toy()
    folder = models.save(tmp_path / "shards", model, params, max_shard_size="9kB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    whole = load_file(saved / "model.safetensors")
    assert index["weight_map"].keys() == whole.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    for file in set(index["weight_map"].values()):
        tensors = load_file(folder / file)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= 9_000
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(tensor, whole[name])


@pytest.mark.parametrize("case", CONFIGS)
def test_configuration_survives_hugging_face(case):
    config = models.DecoderConfig(**CONFIGS[case], eos_token_id=[1, 2])
    again = models.DecoderConfig.from_hf(config.to_hf())
    assert again == config
    assert hash(again) == hash(config)


def test_impossible_sizes_are_named():
    with pytest.raises(ValueError, match="hidden_size=25 is not a multiple of num_attention_heads=4; set head_dim"):
        models.DecoderConfig(**SMALL | {"hidden_size": 25})
    with pytest.raises(ValueError, match="head_dim=5 is odd"):
        models.DecoderConfig(**SMALL | {"head_dim": 5})
    with pytest.raises(ValueError, match="vocab_size=0"):
        models.DecoderConfig(**SMALL | {"vocab_size": 0})
    rope = {name: value for name, value in LLAMA3_ROPE.items() if name != "low_freq_factor"}
    with pytest.raises(ValueError, match="lack low_freq_factor"):
        models.DecoderConfig(**SMALL | {"rope_parameters": rope})


def test_a_folder_without_tokenizer_says_so(saved):
    with pytest.raises(ValueError, match=r"holds no tokenizer \(tokenizer\.json"):
        models.load_tokenizer(saved)


def test_a_hub_id_is_fetched_without_pickles_and_its_failures_are_told(saved, tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def fetch(name, allow_patterns):
        asked.append(allow_patterns)
        if name == "owner/gone":
            raise ConnectionError("no route")
        return str(saved if name == "owner/model" else tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.chdir(tmp_path)
    assert models.resolve("owner/model") == saved
    assert models.resolve("owner/model", weights=False) == saved
    assert ["*.safetensors" in patterns for patterns in asked] == [True, False]
    assert not any("bin" in pattern for pattern in asked[0])
    assert models.load("owner/model")[0].source.config == models.read_config(saved)
    with pytest.raises(ValueError, match="could be fetched from the hub: no route"):
        models.resolve("owner/gone")
    with pytest.raises(ValueError, match="no safetensors weights on the hub"):
        models.resolve("owner/pickles")
