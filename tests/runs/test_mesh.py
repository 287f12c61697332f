"""Commands on a mesh of eight devices, Auto and Explicit, write what they write on one device."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxunlearn.cli import main
from jaxunlearn.runs.settings import Devices

MESHES = {
    "alone": [],
    "auto": ["--mesh", "data=2,fsdp=-1,tensor=2"],
    "explicit": ["--mesh", "data=2,fsdp=-1,tensor=2", "--mesh-axes", "explicit"],
}


def run(world, out, place):
    """Fine-tunes; on one device and with Explicit axes, where more can go wrong, also stores curvature and attacks."""
    common = ["--model", world.model, *MESHES[place]]
    assert main(["finetune", *common, "--data", world.retain, "--out", str(out / "tuned"), "--epochs", "1"]) == 0
    if place != "auto":
        stored = ["--data", world.retain, "--kind", "gradients", "--samples", "4"]
        assert main(["curvature", *common, *stored, "--out", str(out / "kept")]) == 0
        asked = ["--only", "quantisation", "--forget", world.forget, "--out", str(out / "attacks.json")]
        assert main(["attack", *common, *asked]) == 0
    return out


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Devices, "make_mesh", lambda self: None)
        return run(world, tmp_path_factory.mktemp("alone"), "alone")


@pytest.mark.slow
@pytest.mark.parametrize("place", ["auto", "explicit"])
def test_commands_write_what_one_device_writes(place, world, alone, tmp_path):
    out = run(world, tmp_path, place)
    written = sorted(out.rglob("*.safetensors"))
    assert len(written) == {"auto": 1, "explicit": len(list(alone.rglob("*.safetensors")))}[place]
    for path in written:
        theirs, ours = load_file(path), load_file(alone / path.relative_to(out))
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            np.testing.assert_allclose(theirs[name], value, atol=1e-5 * max(1.0, np.abs(value).max()), err_msg=name)
    losses = [json.loads((one / "tuned" / "jaxunlearn.json").read_text())["losses"] for one in (alone, out)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    if place == "explicit":
        attacks = [json.loads((one / "attacks.json").read_text())["results"]["after"] for one in (alone, out)]
        assert attacks[0].keys() == attacks[1].keys()
        for name, value in attacks[0].items():
            assert attacks[1][name]["agg_value"] == pytest.approx(value["agg_value"], abs=1e-5), name
