"""Losses on preferences, as pure functions of sequence log-probs: one idea a file.

Legend: N pairs (or completions, for those that need no pairs). A log-prob of a sequence is the sum
over its completion's tokens, in nats. A log ratio is the policy's log-prob less the reference's.
Every loss is float [N], to be averaged by the caller.
"""
