"""Published benchmarks and families of metrics, each as a suite: its texts, its prompts, its metrics, its rows.

`build` makes suites from data, `run_suites` measures a model by any number of them with one scoring pass and one
generation pass. A suite of one's own follows `Suite` and goes into the same call; `catalogue.register` makes its rows
known to reports.
"""

from jaxunlearn.evals.suites.build import SUITES, Sources, build
from jaxunlearn.evals.suites.choice import CHOICE_METRICS, Choice
from jaxunlearn.evals.suites.knowundo import KNOWUNDO_METRICS, KnowUnDo
from jaxunlearn.evals.suites.memorisation import MEMORISATION_METRICS, Memorisation, memorisation_suite
from jaxunlearn.evals.suites.muse import MUSE_METRICS, Muse, muse_suite
from jaxunlearn.evals.suites.privacy import Privacy
from jaxunlearn.evals.suites.runner import run_suites
from jaxunlearn.evals.suites.tofu import Tofu, tofu_suite

__all__ = [
    "CHOICE_METRICS",
    "KNOWUNDO_METRICS",
    "MEMORISATION_METRICS",
    "MUSE_METRICS",
    "SUITES",
    "Choice",
    "KnowUnDo",
    "Memorisation",
    "Muse",
    "Privacy",
    "Sources",
    "Tofu",
    "build",
    "memorisation_suite",
    "muse_suite",
    "run_suites",
    "tofu_suite",
]
