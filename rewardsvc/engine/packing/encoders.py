"""Packed batches for models that are read by their own heads.

Heads of encoders look at a sequence's first token, or take the mean of them all, so they must see
one sequence a row. The trunk's layers, which are nearly all of the work, compute the packed row; a
hook behind the last of them lays it out as [sequences, longest, hidden size].
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rewardsvc.engine.packing.plan import active_plan

STACKS = ("encoder", "transformer")
"""Names of the layers within a base model that has more behind them, such as BERT's pooler."""


def lay_out(model: Any) -> Any:
    """Puts the hook behind the layers of a transformers model; returns its handle."""
    base = model.base_model
    stacks = [getattr(base, name) for name in STACKS if hasattr(base, name)]
    return (stacks or [base])[0].register_forward_hook(_lay_out)


def _lay_out(module: Any, args: Any, output: Any) -> Any:
    plan = active_plan()
    if plan is None or plan.gather is None:
        return output
    if isinstance(output, Tensor):
        return output[0, plan.gather]
    if isinstance(output, tuple):
        return (output[0][0, plan.gather], *output[1:])
    output.last_hidden_state = output.last_hidden_state[0, plan.gather]
    return output
