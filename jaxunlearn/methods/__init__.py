"""Methods by name. Each is a function of its hyperparameters that returns a `Method`; one family a file.

What is no step on a batch has functions of its own: `CertifiedHead` with its `Ledger`, `hessian_free_online` and
`task_vector`. `uld_assistant` trains a model beside the one that is to forget, and so is no entry of the catalogue.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxunlearn.methods.anchored import anchored_matching
from jaxunlearn.methods.ascent import grad_ascent, grad_ascent_kl, grad_diff, satimp, wga
from jaxunlearn.methods.assistant import uld_assistant
from jaxunlearn.methods.certified import CertifiedHead, Removal, TrainedHead
from jaxunlearn.methods.cubic import cubic_newton
from jaxunlearn.methods.dampening import ssd
from jaxunlearn.methods.distribution import ce_u, inverted_hinge, matching, max_entropy, undial
from jaxunlearn.methods.eul import eul
from jaxunlearn.methods.features import HeadExamples, head_examples, head_features
from jaxunlearn.methods.fisher import fisher_forgetting, fisher_removal
from jaxunlearn.methods.gauss_newton import counterfactual_matching, gauss_newton_ascent
from jaxunlearn.methods.influence import influence
from jaxunlearn.methods.kfac_edit import kfac_edit
from jaxunlearn.methods.kfade import kfade
from jaxunlearn.methods.ledger import BudgetSpentError, Ledger
from jaxunlearn.methods.memflex import LocatedState, located_modules, memflex, train_located
from jaxunlearn.methods.method import Method, compose
from jaxunlearn.methods.newton import newton_removal
from jaxunlearn.methods.noise import noisy_newton
from jaxunlearn.methods.online import Trajectory, carry_along, hessian_free_online, recorded_sgd
from jaxunlearn.methods.preference import altpo, dpo, idk_dpo, npo, simnpo
from jaxunlearn.methods.primal_dual import pdu
from jaxunlearn.methods.relabelling import adversarial_label, random_label, refusal
from jaxunlearn.methods.representation import rmu
from jaxunlearn.methods.sharpness import sam, smoothed
from jaxunlearn.methods.sophia import sophia, soul
from jaxunlearn.methods.task_vector import task_vector
from jaxunlearn.methods.win_u import win_u, win_u_step

__all__ = [
    "CATALOGUE",
    "BudgetSpentError",
    "CertifiedHead",
    "Entry",
    "HeadExamples",
    "Ledger",
    "LocatedState",
    "Method",
    "Removal",
    "TrainedHead",
    "Trajectory",
    "adversarial_label",
    "altpo",
    "anchored_matching",
    "carry_along",
    "ce_u",
    "compose",
    "counterfactual_matching",
    "cubic_newton",
    "dpo",
    "eul",
    "fisher_forgetting",
    "fisher_removal",
    "gauss_newton_ascent",
    "grad_ascent",
    "grad_ascent_kl",
    "grad_diff",
    "head_examples",
    "head_features",
    "hessian_free_online",
    "idk_dpo",
    "influence",
    "inverted_hinge",
    "kfac_edit",
    "kfade",
    "located_modules",
    "matching",
    "max_entropy",
    "memflex",
    "newton_removal",
    "noisy_newton",
    "npo",
    "pdu",
    "random_label",
    "recorded_sgd",
    "refusal",
    "rmu",
    "sam",
    "satimp",
    "simnpo",
    "smoothed",
    "sophia",
    "soul",
    "ssd",
    "task_vector",
    "train_located",
    "uld_assistant",
    "undial",
    "wga",
    "win_u",
    "win_u_step",
]


class Entry(NamedTuple):
    """A line of `jaxunlearn methods`.

    Attributes:
        make: the recipe.
        family: where it belongs.
        needs: what it must be given besides the forget set.
        cost: gradients (g), Hessian-vector (H) and Gauss-Newton (G) products a step, without the certificate.
        source: where the method comes from.
        ascends: True when it has no minimum to stop at, so that a run needs a stop rule.
        steps: default of a run.
        batch_size: forget records a step, default of a run.
        retain_size: retain records a step, default of a run.
        run_options: hyperparameters a run adds unless told otherwise. A recipe's own defaults are the bare formula;
            on a model that has memorised, its step needs a trust region.
    """

    make: Callable[..., Method]
    family: str
    needs: str
    cost: str
    source: str
    ascends: bool = True
    steps: int = 60
    batch_size: int = 32
    retain_size: int = 64
    run_options: tuple[tuple[str, float], ...] = ()


_TRUST = (("max_kl", 1e-3),)

CATALOGUE: dict[str, Entry] = {
    "grad_ascent": Entry(grad_ascent, "first order", "nothing", "1 g", "Jang et al. 2023"),
    "grad_diff": Entry(grad_diff, "first order", "retain", "2 g", "Liu et al. 2022; TOFU"),
    "grad_ascent_kl": Entry(grad_ascent_kl, "first order", "retain, stored top-k", "2 g", "TOFU 2024"),
    "wga": Entry(wga, "first order", "retain", "2 g", "Wang et al. 2025"),
    "satimp": Entry(satimp, "first order", "retain", "2 g", "Yang et al. 2025"),
    "npo": Entry(npo, "first order", "retain, stored log-probs", "2 g", "Zhang et al. 2024"),
    "simnpo": Entry(simnpo, "first order", "retain", "2 g", "Fan et al. 2024"),
    "dpo": Entry(dpo, "first order", "retain, stored log-probs, given alternatives", "3 g", "Rafailov et al. 2023"),
    "idk_dpo": Entry(idk_dpo, "first order", "retain, stored log-probs, refusals", "3 g", "TOFU 2024"),
    "altpo": Entry(
        altpo, "first order", "retain, stored log-probs, sampled alternatives", "3 g", "after Mekala et al. 2025"
    ),
    "refusal": Entry(refusal, "first order", "retain, refusals", "2 g", "TOFU 2024", ascends=False),
    "random_label": Entry(
        random_label, "first order", "retain, mismatched answers", "2 g", "Yao et al. 2024", ascends=False
    ),
    "adversarial_label": Entry(
        adversarial_label, "first order", "retain, stored top-k", "2 g", "Yao et al. 2024", ascends=False
    ),
    "undial": Entry(undial, "first order", "stored top-k", "1 g", "Dong et al. 2025", ascends=False),
    "matching": Entry(
        matching, "first order", "retain, entity names", "2 g", "Liu et al. 2024", ascends=False, steps=40
    ),
    "max_entropy": Entry(
        max_entropy, "first order", "retain, refusals to retain", "3 g", "Yuan et al. 2025", ascends=False
    ),
    "ce_u": Entry(ce_u, "first order", "nothing", "1 g", "Yang 2025"),
    "inverted_hinge": Entry(inverted_hinge, "first order", "retain", "2 g", "Cha et al. 2025"),
    "pdu": Entry(pdu, "first order", "retain, a bound eps", "2 g", "Entesari et al. 2025", ascends=False),
    "rmu": Entry(rmu, "first order", "retain, stored hidden states", "2 g", "Li et al. 2024", ascends=False),
    "memflex": Entry(memflex, "first order", "retain; adapters", "2 g, first step 4 g", "Tian et al. 2024"),
    "eul": Entry(eul, "first order", "retain, stored top-k; adapters to train", "4 g", "after Chen and Yang 2023"),
    "sam": Entry(sam, "first order", "retain, stored log-probs", "3 g", "Fan et al. 2025"),
    "smoothed": Entry(smoothed, "first order", "retain, stored log-probs", "(3 + samples) g", "Fan et al. 2025"),
    "newton_removal": Entry(
        newton_removal, "second order", "retain", "1 g + cg_steps H", "Guo et al. 2020", run_options=_TRUST
    ),
    "fisher_removal": Entry(
        fisher_removal,
        "second order",
        "retain, or stored gradients",
        "(1 + samples/batch) g, stored 1 g",
        "after Gu et al. 2024",
        run_options=_TRUST,
    ),
    "fisher_forgetting": Entry(
        fisher_forgetting, "noise", "retain", "(samples/batch) g", "after Gu et al. 2024", ascends=False, steps=1
    ),
    "gauss_newton_ascent": Entry(
        gauss_newton_ascent, "second order", "retain", "1 g + (cg_steps + 1) G", "exact form of K-FADE 2026"
    ),
    "counterfactual_matching": Entry(
        counterfactual_matching,
        "second order",
        "retain, entity names",
        "2 g + (2 cg_steps + 1) G",
        "objective after Liu et al. 2024",
        ascends=False,
        steps=40,
    ),
    "anchored_matching": Entry(
        anchored_matching,
        "second order",
        "entity names; retain, or stored factors",
        "3 g, stored 1 g",
        "objective after Liu et al. 2024; penalty after Ritter et al. 2018",
        ascends=False,
        steps=150,
    ),
    "win_u": Entry(
        win_u,
        "second order",
        "retain, or stored curvature and share",
        "2 g + (rank + 2) cg_steps G",
        "after WIN-U 2026",
        run_options=_TRUST,
    ),
    "noisy_newton": Entry(
        noisy_newton,
        "second order, noise",
        "retain",
        "(1 + samples/batch) g + cg_steps H",
        "after Gu et al. 2024; Golatkar et al. 2020",
        run_options=_TRUST,
    ),
    "influence": Entry(
        influence, "second order", "retain", "(2 + samples/batch) g", "Koh and Liang 2017", run_options=_TRUST
    ),
    "kfade": Entry(kfade, "second order", "retain, or stored factors", "3 g + 1 G, stored 1 g", "after K-FADE 2026"),
    "cubic_newton": Entry(
        cubic_newton, "second order", "retain", "1 g + lanczos_steps H", "after CuReNU (Bui et al. 2024)"
    ),
    "soul": Entry(
        soul,
        "second order",
        "retain, what its objective reads",
        "(2 + 2/interval) g",
        "Jia et al. 2024; Liu et al. 2023",
    ),
    "ssd": Entry(
        ssd,
        "one-shot edit",
        "retain",
        "3 g (2 of them example by example)",
        "Foster et al. 2024",
        ascends=False,
        steps=1,
        batch_size=256,
        retain_size=512,
    ),
    "kfac_edit": Entry(
        kfac_edit,
        "one-shot edit",
        "retain, or stored factors; no forget set",
        "1 g, stored 0 g",
        "Merullo et al. 2025",
        ascends=False,
        steps=1,
        retain_size=512,
    ),
}
