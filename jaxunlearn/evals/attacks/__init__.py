"""Stress tests of forgetting: what an attacker, or a little more training, brings back.

One attack a file. By themselves: `exposure` of canaries, `relearning`, `quantisation`, `membership` (with what it needs
in `gradient_norm`, `neighbourhood` and `conditional`), the document `audit`, `probes` of layers and of `prompts`. All
at once on one model: `stress`, and what it means in sentences: `findings`.
"""

from jaxunlearn.evals.attacks.audit import Audit, Suspect, audit
from jaxunlearn.evals.attacks.canaries import canary_exposures
from jaxunlearn.evals.attacks.catalogue import ATTACK_METRICS
from jaxunlearn.evals.attacks.exposure import Exposure, exposure, exposures_from_nll
from jaxunlearn.evals.attacks.families import FAMILIES
from jaxunlearn.evals.attacks.findings import findings
from jaxunlearn.evals.attacks.gradient_norm import gradient_norms
from jaxunlearn.evals.attacks.membership import Attacker, membership
from jaxunlearn.evals.attacks.neighbourhood import neighbour_nll
from jaxunlearn.evals.attacks.probes import Lens, Probe, linear_probe, logit_lens
from jaxunlearn.evals.attacks.prompts import Return, paraphrases, prefixed, returned
from jaxunlearn.evals.attacks.quantisation import Quantisation, quantisation, quantise
from jaxunlearn.evals.attacks.relearning import Relearning, relearning
from jaxunlearn.evals.attacks.stress import stress
from jaxunlearn.evals.attacks.target import Doses, Target

__all__ = [
    "ATTACK_METRICS",
    "FAMILIES",
    "Attacker",
    "Audit",
    "Doses",
    "Exposure",
    "Lens",
    "Probe",
    "Quantisation",
    "Relearning",
    "Return",
    "Suspect",
    "Target",
    "audit",
    "canary_exposures",
    "exposure",
    "exposures_from_nll",
    "findings",
    "gradient_norms",
    "linear_probe",
    "logit_lens",
    "membership",
    "neighbour_nll",
    "paraphrases",
    "prefixed",
    "quantisation",
    "quantise",
    "relearning",
    "returned",
    "stress",
]
