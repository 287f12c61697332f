"""Hyperparameters from the command line: every type a recipe uses, and every way to get one wrong."""

import inspect

import pytest

from jaxunlearn import methods, objectives
from jaxunlearn.methods import CATALOGUE
from jaxunlearn.runs.options import describe, make_method, options_of


@pytest.fixture
def received(monkeypatch):
    """The keyword arguments that reach a recipe, as `received(method, *options)`."""

    def call(name, *options):
        entry = methods.CATALOGUE[name]
        got = {}

        def recipe(**values):
            got.update(values)
            return entry.make(**values)

        recipe.__signature__ = inspect.signature(entry.make)
        recipe.__annotations__ = entry.make.__annotations__
        monkeypatch.setitem(methods.CATALOGUE, name, entry._replace(make=recipe))
        make_method(name, options)
        return got

    return call


def test_values_arrive_in_the_type_of_the_recipe(received):
    got = received("newton_removal", "damping=1e-2", "cg_steps=8", "max_kl=1e-3", "microbatch=none")
    assert got == {"damping": 0.01, "cg_steps": 8, "max_kl": 0.001, "microbatch": None}
    assert type(got["cg_steps"]) is int
    assert received("newton_removal", "max_kl=None", "microbatch=4") == {"max_kl": None, "microbatch": 4}
    assert received("npo", "retain=kl") == {"retain": "kl"}


def test_options_change_the_method():
    assert make_method("npo", ["retain=kl"]).needs == ("forget_nll", "retain_top")
    plain, chosen = make_method("npo").objective, make_method("npo", ["beta=0.5", "retain=none"]).objective
    assert plain.terms[0] == (1.0, objectives.NPO(0.1))
    assert chosen.terms == ((1.0, objectives.NPO(0.5)),)
    assert make_method("gauss_newton_ascent", ["microbatch=2"]).objective.microbatch == 2


def test_without_options_it_is_the_recipe_with_its_defaults():
    for name, entry in methods.CATALOGUE.items():
        if name == "pdu":  # its bound has no default
            continue
        made = make_method(name)
        assert (made.name, made.objective, made.needs) == (name, entry.make().objective, entry.make().needs)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("newton_remval", [], "no such method.*did you mean newton_removal"),
        ("zzz", [], "no such method; `jaxunlearn methods` lists them"),
        ("newton_removal", ["dampin=1"], "no such option.*did you mean damping.*cg_steps"),
        ("pdu", [], "--method pdu needs a value for eps: add --option eps="),
        ("pdu", ["eps=-1"], "eps=-1"),
        ("newton_removal", ["damping"], "--option damping: write it as name=value"),
        ("newton_removal", ["damping=much"], "'much' is not a finite number"),
        ("newton_removal", ["cg_steps=2.5"], "'2.5' is not a whole number"),
        ("newton_removal", ["cg_steps=none"], "'none' is not a whole number"),
        ("npo", ["retain=all"], "choose one of nll, kl, none"),
        ("npo", ["optimizer=adam"], "npo has no such option"),
        ("npo", ["beta=-1"], "beta must be positive"),
        ("npo", ["learning_rate=0"], "positive learning rate"),
        ("newton_removal", ["damping=-1"], "negative damping"),
        ("fisher_removal", ["samples=0"], "samples"),
        ("gauss_newton_ascent", ["max_kl=0"], "positive bound"),
    ],
)
def test_mistakes_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_method(name, options)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_numbers_must_be_finite(value):
    with pytest.raises(ValueError, match=f"{value!r} is not a finite number"):
        make_method("newton_removal", [f"damping={value}"])


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_option_has_help(name):
    assert all(option.help for option in options_of(name)), name
    assert describe(name).startswith(name)
