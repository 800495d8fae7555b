"""Chooses how a model's batches are computed, and tries it before it is used.

What a model's attention does to a packed batch can be told from its configuration only in part, and
of code that is not transformers' own, not at all. So known obstacles are looked for first, which
gives the better message; then a few sequences are computed packed and by themselves, with
the real weights. If the numbers differ, batches are padded.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from rewardsvc.engine.packing import attention, encoders
from rewardsvc.engine.packing.backend import PackedForm, PackedTorchBackend
from rewardsvc.engine.packing.canonical import block_rows
from rewardsvc.engine.packing.obstacles import first_counted, has_experts, length_limit, obstacle
from rewardsvc.engine.packing.plan import PackingError
from rewardsvc.engine.packing.probe import check_agreement, check_canonical, probe_items
from rewardsvc.engine.torch_backend import (
    Batching,
    OwnForward,
    PaddedTorchBackend,
    Reading,
    TorchBackend,
)
from rewardsvc.engine.types import Encoded

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What is asked of a backend.

    Attributes:
        attention: "auto", or the attention implementation that has to be used.
        deterministic: Whether scores must not depend on the batch, bit for bit.
        max_length: Tokens of the longest sequence that may come.
        pad_id: Fills padded rows up.
        pair: Whether sequences may be text pairs.
    """

    attention: str = "auto"
    deterministic: bool = False
    max_length: int
    pad_id: int = 0
    pair: bool = False


def choose_backend(model: Any, reading: Reading, *, device: str, wishes: Wishes) -> TorchBackend:
    """The quickest backend that computes what the model does.

    Args:
        model: The transformers model; its attention implementation is changed if it is packed.
        reading: How it is read.
        device: Where its parameters are.
        wishes: See there.
    """
    reason = obstacle(model, attention=wishes.attention, max_length=wishes.max_length)
    if not reason and wishes.deterministic and has_experts(model):
        reason = "how many tokens its experts get depends on the batch"
    if not reason:
        trial = _Trial(model, reading, device, wishes)
        try:
            return trial.packed()
        except Exception as error:  # whatever a model's code makes of it, it is not packed then
            trial.undo()
            is_ours = isinstance(error, PackingError)
            reason = str(error) if is_ours else f"{type(error).__name__}: {error}"
    alone = wishes.deterministic or length_limit(model) is not None
    batching = Batching(
        kind="alone" if alone else "padded", deterministic=wishes.deterministic, reason=reason
    )
    return PaddedTorchBackend(
        reading, device=device, pad_id=wishes.pad_id, alone=alone, batching=batching
    )


class _Trial:
    """One model on its way to be packed."""

    def __init__(self, model: Any, reading: Reading, device: str, wishes: Wishes) -> None:
        self._model = model
        self._reading = reading
        self._device = device
        self._wishes = wishes
        self._attention = model.config._attn_implementation
        self._hook: Any = None

    def packed(self) -> PackedTorchBackend:
        """The backend, tried.

        Raises:
            PackingError: If it does not compute what the model does.
            Exception: Whatever the model's code raises.
        """
        vocab_size = self._model.get_input_embeddings().weight.shape[0]
        limit = length_limit(self._model)
        max_length = min(self._wishes.max_length, limit or self._wishes.max_length)
        probe = probe_items(vocab_size, max_length)
        plain = PaddedTorchBackend(self._reading, device=self._device)
        expected = [plain.run([item])[0] for item in probe]
        attention.register()
        self._model.set_attn_implementation(attention.NAME)
        if isinstance(self._reading, OwnForward):
            self._hook = encoders.lay_out(self._model)
        form = PackedForm(
            lays_out=self._hook is not None,
            counts_from=first_counted(self._model),
            max_together=limit,
            block_rows=(
                block_rows(self._device, self._model.dtype) if self._wishes.deterministic else None
            ),
        )
        form = replace(form, share=self._is_causal(form, probe[0]) and not self._wishes.pair)
        for fused in (True, False):
            backend = self._backend(replace(form, fused=fused))
            try:
                check_agreement(backend.run(probe), expected, self._model.dtype)
                break
            except Exception as error:
                if not fused or self._device == "cpu":
                    raise
                logger.warning("the device's attention kernels cannot be used: %s", error)
        if self._wishes.deterministic:
            check_canonical(backend, vocab_size, max_length)
        return backend

    def _backend(self, form: PackedForm) -> PackedTorchBackend:
        return PackedTorchBackend(self._reading, device=self._device, form=form)

    def _is_causal(self, form: PackedForm, item: Encoded) -> bool:
        """Whether all layers attend only what is before; computes a sequence to see."""
        backend = self._backend(replace(form, block_rows=None))
        backend.run([item])
        plan = backend.last_plan
        assert plan is not None
        num_layers = getattr(self._model.config.get_text_config(), "num_hidden_layers", None)
        if not plan.num_calls or num_layers not in (None, plan.num_calls):
            raise PackingError(
                f"{plan.num_calls} of its {num_layers} layers attend by the AttentionInterface"
            )
        return not plan.saw_bidirectional

    def undo(self) -> None:
        """Makes the model what it was."""
        if self._hook is not None:
            self._hook.remove()
        if self._model.config._attn_implementation != self._attention:
            self._model.set_attn_implementation(self._attention)
