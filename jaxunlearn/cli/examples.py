"""Two calls of each command, shown under its options."""

EXAMPLES = {
    "demo": ("jaxunlearn demo", "jaxunlearn demo --out my-demo --seed 7"),
    "finetune": (
        "jaxunlearn finetune --model base --data all.jsonl --out tuned",
        "jaxunlearn finetune --model base --data retain.jsonl --out retrained --epochs 20 --resume",
    ),
    "unlearn": (
        "jaxunlearn unlearn --model tuned --forget forget.jsonl --retain retain.jsonl --out forgotten --dry-run",
        "jaxunlearn unlearn --model tuned --forget forget.jsonl --retain retain.jsonl --out forgotten "
        "--method gauss_newton_ascent --option max_kl=1e-3",
    ),
    "curvature": (
        "jaxunlearn curvature --model tuned --data all.jsonl --out kept",
        "jaxunlearn curvature --model tuned --data all.jsonl --out softened --temperature 3",
    ),
    "evaluate": (
        "jaxunlearn evaluate --model forgotten --forget forget.jsonl --retain retain.jsonl --out numbers.json",
        "jaxunlearn evaluate --model forgotten --reference-model retrained --suite tofu --data TOFU --out tofu.json",
    ),
    "compare": (
        "jaxunlearn compare numbers.json retrained.json",
        "jaxunlearn compare eval_log_aggregated.json retain90.json",
    ),
    "attack": (
        "jaxunlearn attack --model forgotten --forget forget.jsonl --retain retain.jsonl --holdout unseen.jsonl",
        "jaxunlearn attack --model forgotten --forget forget.jsonl --only quantisation --only lens --out attack.json",
    ),
    "report": (
        "jaxunlearn report forgotten --evaluation numbers.json --seed-floor floor.json",
        "jaxunlearn report forgotten --compare npo.json --compare rmu.json --show-text --out page.html",
    ),
    "canary insert": (
        'jaxunlearn canary insert --data all.jsonl --template "My code is {digits:6}" --out with.jsonl --key key.jsonl',
        'jaxunlearn canary insert --data all.jsonl --template "Call {digits:7}" --copies 1 --copies 8 --out with.jsonl '
        "--key key.jsonl",
    ),
    "canary score": (
        "jaxunlearn canary score --model tuned --key key.jsonl",
        "jaxunlearn canary score --model forgotten --key key.jsonl --ranks sampled --out exposure.json",
    ),
    "spectrum": (
        "jaxunlearn spectrum --model tuned --forget forget.jsonl --retain retain.jsonl --out spectrum",
        "jaxunlearn spectrum --model tuned --forget forget.jsonl --retain retain.jsonl --out hessian "
        "--curvature hessian --lanczos-steps 80 --option max_kl=1e-4",
    ),
    "plan": (
        "jaxunlearn plan --model llama-3-8b --topology v5e:8x8",
        "jaxunlearn plan --model tuned --topology v5p:2x2x2 --method npo --program step --smallest",
    ),
    "bench": (
        "jaxunlearn bench --size 1M",
        "jaxunlearn bench --model tuned --curvature gauss-newton --batch-size 8 --length 512 --out bench.json",
    ),
    "doctor": ("jaxunlearn doctor", "jaxunlearn doctor --check False"),
    "methods": ("jaxunlearn methods", "jaxunlearn methods newton_removal"),
}


def shown(command: str) -> str:
    """The examples of a command as a paragraph of its help.

    Example:
        >>> print(shown("demo"))
        Examples:
          jaxunlearn demo
          jaxunlearn demo --out my-demo --seed 7
    """
    return "\n  ".join(["Examples:", *EXAMPLES.get(command, ())])
