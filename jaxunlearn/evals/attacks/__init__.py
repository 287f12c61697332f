"""Stress tests of forgetting: what an attacker, or a little more training, brings back.

One attack a file: `exposure` of canaries, `relearning`, `quantisation`, `membership` with its scores in
`gradient_norm`, `neighbourhood` and `conditional`, the `document` audit, `probes` of hidden states and of `prompts`.
Import from the files; this package imports none, so that its table of metrics costs nothing.
"""
