"""Settings of the runs: plain dataclasses that the command line, YAML and Python fill alike."""

from jaxunlearn.runs.settings.durability import Checkpoints, Resuming
from jaxunlearn.runs.settings.evaluation import Attack, CanaryInsert, CanaryScore, Compare, Evaluate
from jaxunlearn.runs.settings.groups import Devices, Private, Text, Trainable, Watching, WatchingTraining
from jaxunlearn.runs.settings.inspection import Bench, Spectrum
from jaxunlearn.runs.settings.reporting import Report
from jaxunlearn.runs.settings.tools import Demo, Doctor, Plan
from jaxunlearn.runs.settings.tracking import Tracking
from jaxunlearn.runs.settings.training import Finetune, StoreCurvature, Unlearn

__all__ = [
    "Attack",
    "Bench",
    "CanaryInsert",
    "CanaryScore",
    "Checkpoints",
    "Compare",
    "Demo",
    "Devices",
    "Doctor",
    "Evaluate",
    "Finetune",
    "Plan",
    "Private",
    "Report",
    "Resuming",
    "Spectrum",
    "StoreCurvature",
    "Text",
    "Tracking",
    "Trainable",
    "Unlearn",
    "Watching",
    "WatchingTraining",
]
