"""Whatever is wrong with the files of a checkpoint is one message, and nothing is loaded by halves."""

import contextlib
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from decoder_cases import toy
from family_models import built
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from jaxunlearn import models
from jaxunlearn.models.checkpoint_files import INDEX, SINGLE, contents
from jaxunlearn.models.rope import frequencies
from jaxunlearn.models.streaming import all_finite

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model, params = toy()
    return models.save(tmp_path_factory.mktemp("saved") / "model", model, params, max_shard_size=9_000)


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def rewrite(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def edit_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def test_everything_that_headers_can_tell_is_in_one_message(folder):
    files = sorted(folder.glob("*.safetensors"))
    files[0].write_bytes(files[0].read_bytes()[:-100])  # truncated
    files[1].write_bytes(files[1].read_bytes()[8:])  # no header
    files[2].unlink()
    rewrite(files[3], lambda tensors: tensors.update({"../../etc/passwd": np.zeros(2, np.float32)}))

    def change(weight_map):
        weight_map["model.norm.weight"] = "../elsewhere.safetensors"
        weight_map["model.ghost.weight"] = files[3].name

    edit_index(folder, change)
    with pytest.raises(ValueError, match="do not fit its config") as caught:
        models.load(folder)
    message = str(caught.value)
    for part in (
        f"{files[0].name} is not a readable safetensors file",
        f"{files[1].name} is not a readable safetensors file",
        f"{files[2].name} is listed in {INDEX} but does not exist",
        "points to '../elsewhere.safetensors'",
        f"lists tensors that their files lack: model.ghost.weight ({files[3].name})",
        "unexpected (1): ../../etc/passwd",
    ):
        assert part in message, part
    assert "missing" not in message  # what damaged files should hold is not counted a second time


def test_weights_that_are_not_finite_are_all_named(folder):
    names = []
    for file, value in zip(sorted(folder.glob("*.safetensors"))[1:4], (np.nan, np.inf, -np.inf), strict=True):

        def change(tensors, value=value):
            name = sorted(tensors)[0]
            tensors[name].flat[-1] = value
            names.append(name)

        rewrite(file, change)
    with pytest.raises(ValueError, match="not finite .* in 3 tensors") as caught:
        models.load(folder)
    assert all(name in str(caught.value) for name in names)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32, np.float64])
def test_finite_is_what_numpy_calls_finite(dtype):
    largest = np.asarray([jnp.finfo(dtype).max, -jnp.finfo(dtype).max, 0.0, -0.0, jnp.finfo(dtype).tiny], dtype)
    assert all_finite(largest)
    for odd in (np.nan, np.inf, -np.inf):
        assert not all_finite(np.append(largest, np.asarray([odd], dtype)))


def test_a_tensor_in_two_files_and_an_entry_listed_twice_are_named(folder):
    files = sorted(folder.glob("*.safetensors"))
    name, tensor = next(iter(load_file(files[0]).items()))
    rewrite(files[1], lambda tensors: tensors.update({name: tensor}))
    with pytest.raises(ValueError, match=f"more than one file: {name} .{files[1].name} and {files[0].name}"):
        models.load(folder)
    text = (folder / INDEX).read_text()
    (folder / INDEX).write_text(text.replace('"weight_map": {', f'"weight_map": {{"{name}": "{files[0].name}",'))
    with pytest.raises(ValueError, match=f"lists {name} more than once"):
        models.load(folder)


def test_files_of_several_dtypes_keep_them(tmp_path):
    """Norms in f32 beside bfloat16 matrices, and one layer of a matrix wider than the other."""
    model, params = toy()
    folder = models.save(tmp_path / "one", model, params)
    wide = ("model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.layers.0.input_layernorm.weight")

    def change(tensors):
        for name in tensors:
            if name not in wide:
                tensors[name] = tensors[name].astype(jnp.bfloat16)

    rewrite(folder / SINGLE, change)
    again, loaded = models.load(folder)
    assert loaded["layers"]["mlp"]["up_proj"]["kernel"].dtype == jnp.float32
    models.save(tmp_path / "two", again, loaded, max_shard_size=9_000)
    before = load_file(folder / SINGLE)
    index = json.loads((tmp_path / "two" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in before.values())
    after = {name: load_file(tmp_path / "two" / file)[name] for name, file in index["weight_map"].items()}
    assert {name: tensor.dtype for name, tensor in after.items()} == {name: t.dtype for name, t in before.items()}
    assert all((after[name] == before[name]).all() for name in before)
    half = models.load(folder, dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half[1])} == {"bfloat16"}
    models.save(tmp_path / "three", *half)
    assert {t.dtype.name for t in load_file(tmp_path / "three" / SINGLE).values()} == {"bfloat16"}


def test_pickle_folders_are_refused_with_a_command_that_converts_them(tmp_path):
    folder = tmp_path / "old's model"
    module = transformers.AutoModelForCausalLM.from_config(models.DecoderConfig(**TINY).to_hf())
    module.save_pretrained(folder)
    torch.save(module.state_dict(), folder / "pytorch_model.bin")
    (folder / SINGLE).unlink()
    with pytest.raises(ValueError, match=r"only pickle weights \(pytorch_model.bin\)") as caught:
        models.load(folder)
    command = str(caught.value).split("is installed: ")[1]
    assert command.startswith('python -c "import sys, transformers as t;')
    assert command.endswith("""'"'"'s model' 'old'"'"'s model-safetensors'""")


TINY = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


@FUZZ
@given(content=st.binary(max_size=300))
def test_no_bytes_make_a_header_reader_do_anything_but_read_or_refuse(tmp_path, content):
    (tmp_path / SINGLE).write_bytes(content)
    found = contents(tmp_path)
    assert found.tensors or all(SINGLE in problem for problem in found.problems) != (found.problems == [])
    assert not (found.tensors and found.problems)


@FUZZ
@given(
    where=st.integers(0, 2**20),
    what=st.binary(min_size=1, max_size=8),
    kind=st.sampled_from(["replace", "insert", "cut"]),
    file=st.integers(0, 3),
)
def test_a_changed_header_is_refused_or_changes_nothing_of_shape(saved, tmp_path, where, what, kind, file):
    _, expected = toy()
    target = sorted(saved.glob("*.safetensors"))[file]
    content = target.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    at = where % header
    content = content[:at] + (b"" if kind == "cut" else what) + content[at + (0 if kind == "insert" else len(what)) :]
    for other in saved.iterdir():
        (tmp_path / other.name).write_bytes(content if other == target else other.read_bytes())
    found = contents(tmp_path)
    assert found.problems or found.tensors
    with contextlib.suppress(ValueError):  # nothing else is ever raised
        _, params = models.load(tmp_path)
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
PATHS = st.sampled_from(["../x.safetensors", "/etc/x.safetensors", "a\0b.safetensors", "..", "", "sub/x.safetensors"])


@FUZZ
@given(index=JSON | st.dictionaries(st.just("weight_map"), st.dictionaries(st.text(max_size=8), JSON | PATHS)))
def test_no_index_leads_out_of_its_folder(tmp_path, index):
    (tmp_path / INDEX).write_text(json.dumps(index))
    found = contents(Path(tmp_path))
    assert not found.tensors
    empty = isinstance(index, dict) and index.get("weight_map") == {}
    assert found.problems or empty


@pytest.fixture(scope="module", params=["llama", "phi3", "gemma2", "gpt_neo"])
def configured(request, tmp_path_factory):
    folder = built(request.param, tmp_path_factory.mktemp("configured")).folder
    return folder, json.loads((folder / "config.json").read_text())


ODD = st.sampled_from([-1, 0, 1, 3, 10**12, -2.5, 1e300, float("nan"), float("inf"), "x", [1], [None], {}]) | JSON
ROPE = [
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "long_factor",
]


@FUZZ
@given(draw=st.data(), value=ODD, rope=st.booleans())
def test_a_changed_configuration_is_refused_or_computes(configured, draw, value, rope):
    """Whatever a field is changed to: a ValueError that names the file, or a model with angles that are numbers."""
    folder, config = configured
    rope = rope and "rope_parameters" in config
    name = draw.draw(st.sampled_from(ROPE if rope else sorted(set(config) - {"num_hidden_layers", "num_layers"})))
    (folder / "config.json").write_text(
        json.dumps(config | ({"rope_parameters": config["rope_parameters"] | {name: value}} if rope else {name: value}))
    )
    refused = ""
    try:
        model, params = models.load(folder)
    except ValueError as error:
        refused = str(error)
    if refused:
        assert str(folder) in refused
        return
    jax.eval_shape(model.logits, params, jax.ShapeDtypeStruct((1, 3), jnp.int32))
    if model.source.config.rope_parameters is not None:
        angles = [90 * frequencies(model.source.config, long=long) for long in (False, True)]
        assert np.isfinite(angles).all()


def test_a_configuration_of_brackets_is_no_json(tmp_path):
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"config.json is not valid JSON"):
        models.load(tmp_path)
