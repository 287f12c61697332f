"""Other runs on the page of `jaxunlearn report`: earlier requests, and models that it is compared with."""

import json

import yaml
from report_home import checkpoint, measure, reported

from jaxunlearn.reports import figures
from jaxunlearn.runs.record import FILE, digest


def unlearned(home, name, number, model, rise=1.0):
    """A folder that answered a request, made from the one called `model`."""
    folder = checkpoint(home / name, name.encode())
    record = {
        "command": "unlearn", "weights": digest(folder), "inputs": named_model(home / model),
        "requests": [{"number": number}], "history": [{"forget_nll": rise}, {"forget_nll": 2 * rise}],
    }  # fmt: skip
    (folder / FILE).write_text(json.dumps(record))
    return str(folder)


def named_model(folder):
    return {"model": {"path": str(folder), "sha256": digest(folder)}}


def test_runs_of_earlier_requests_and_of_compared_models_are_drawn_if_they_are_of_those_weights(home, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "runs", lambda history, lead: drawn.append(history))
    own = json.loads((home / "gone" / FILE).read_text())

    def starts(model):
        (home / "gone" / FILE).write_text(json.dumps(own | {"inputs": own["inputs"] | named_model(home / model)}))

    unlearned(home, "first", 1, "before", rise=1.0)
    unlearned(home, "second-request", 2, "first", rise=2.0)
    starts("second-request")
    npo, bare = unlearned(home, "npo", 1, "before", rise=3.0), unlearned(home, "bare", 1, "before", rise=4.0)
    measure(home, "npo-numbers.json", after="npo", kl=3.3)
    page = reported(home, "--compare", npo, "--compare", bare)
    assert {name: steps[0]["forget_nll"] for name, steps in drawn[-1].items()} == {
        "request 1": 1.0, "request 2": 2.0, "after": 1.0, "npo-numbers": 3.0, "bare": 4.0,
    }  # fmt: skip
    assert list(drawn[-1])[:3] == ["request 1", "request 2", "after"]
    assert "npo-numbers: 3.300 on forget" in page  # the folder was looked up
    options = next(home.folder.glob("page-*.yaml"))
    assert yaml.safe_load(options.read_text())["compare"] == [str(home / "npo-numbers.json"), bare]
    # A folder that was written anew is not the one that the run began with, and neither is one without a record.
    (home / "first" / FILE).write_text(json.dumps({"command": "unlearn", "weights": "other", "history": [{}]}))
    reported(home)
    assert list(drawn[-1]) == ["request 2", "after"]
    starts("before")
    reported(home)
    assert list(drawn[-1]) == ["after"]


def test_compared_files_of_one_name_do_not_hide_each_other(home):
    measure(home, "e.json")
    (home / "a").mkdir()
    files = [measure(home, name, after=after, kl=kl) for name, after, kl in
             (("x.json", "other", 3.1), ("a/x.json", "second", 3.2))]  # fmt: skip
    page = reported(home, "--compare", files[0], "--compare", files[1])
    assert "x: 3.100 on forget" in page
    assert "a/x: 3.200 on forget" in page
