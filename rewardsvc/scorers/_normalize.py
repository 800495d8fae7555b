"""What a checkpoint says of the mean and spread of its scores."""

from __future__ import annotations

from dataclasses import dataclass

from rewardsvc.errors import ConfigError
from rewardsvc.scorers._checkpoint import Checkpoint
from rewardsvc.scorers._loading import model_settings

SAFE_RLHF_EPSILON = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """`(score - mean) / std`."""

    mean: float
    std: float


def stated_scale(checkpoint: Checkpoint) -> Scale | None:
    """The normalisation that a checkpoint keeps: OpenRLHF's, or that of safe-rlhf.

    OpenRLHF writes `mean` and `std` into `config.json`. safe-rlhf writes `mean` and `var`, there or
    into tensors, and whether they are to be used: rewards are shifted and scaled, costs only
    scaled, so that their sign keeps its meaning.

    Returns:
        None if the checkpoint says that its scores are to be taken as they are.

    Raises:
        ConfigError: If it says nothing, or nothing usable.

    Source: https://github.com/PKU-Alignment/safe-rlhf (safe_rlhf/models/normalizer.py), and
        openrlhf/models/model.py.
    """
    settings = model_settings(checkpoint)
    try:
        if "do_normalize" in settings:
            return _safe_rlhf(checkpoint, settings) if settings["do_normalize"] else None
        scale = Scale(mean=float(settings["mean"]), std=float(settings["std"]))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ConfigError(
            f"normalize: 'checkpoint', but config.json has no usable mean and std: {error!r}"
        ) from None
    if not scale.std > 0:
        raise ConfigError(f"normalize: the checkpoint's std is {scale.std}, which is not above 0")
    return scale


def _safe_rlhf(checkpoint: Checkpoint, settings: dict[str, object]) -> Scale:
    found = {}
    for key in ("mean", "var"):
        if f"normalizer.{key}" in checkpoint.tensor_files:
            found[key] = float(checkpoint.read(f"normalizer.{key}").float().reshape(-1)[0])
        else:
            stated = settings[key]
            found[key] = float(stated[0] if isinstance(stated, list) else stated)  # type: ignore[arg-type]
    std = found["var"] ** 0.5 + SAFE_RLHF_EPSILON
    kind = settings.get("score_type", "reward")
    return Scale(mean=found["mean"] if kind == "reward" else 0.0, std=std)
