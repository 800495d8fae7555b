"""`rewardsvc train ALGORITHM --config FILE [field=value …]`."""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperCommand

from rewardsvc.cli import fail
from rewardsvc.errors import ConfigError

ONLINE = "rewardsvc.policy_client.train.online"
SFT = "rewardsvc.policy_client.train.sft"
REWARD_MODEL = "rewardsvc.policy_client.train.reward_model"
PROCESS_REWARD = "rewardsvc.policy_client.train.process_reward"
SELECTION = "rewardsvc.policy_client.train.selection"
PREFERENCE = "rewardsvc.policy_client.train.preference"

ALGORITHMS: dict[str, tuple[str, str, str]] = {
    "sft": (SFT, "SftConfig", "Supervised fine-tuning on completions."),
    "rm": (REWARD_MODEL, "RewardModelConfig", "A reward model from pairs or rankings."),
    "prm": (PROCESS_REWARD, "PrmTrainConfig", "A process reward model from labelled steps."),
    "ppo": (ONLINE, "OnlineConfig", "Proximal policy optimisation with a critic."),
    "ppo_adaptive_kl": (ONLINE, "OnlineConfig", "PPO whose KL weight follows a target."),
    "ppo_penalty": (ONLINE, "OnlineConfig", "PPO with a KL to the old policy in place of clips."),
    "ppo_dual_clip": (ONLINE, "OnlineConfig", "PPO with a bound at negative advantages."),
    "ppo_process": (ONLINE, "OnlineConfig", "PPO on process rewards, through GAE."),
    "grpo": (ONLINE, "OnlineConfig", "Group-relative policy optimisation."),
    "grpo_process": (ONLINE, "OnlineConfig", "GRPO on process rewards, normalised step-wise."),
    "dr_grpo": (ONLINE, "OnlineConfig", "GRPO without its biases for length and difficulty."),
    "dapo": (ONLINE, "OnlineConfig", "GRPO with clip-higher, dynamic sampling, soft overlong."),
    "cispo": (ONLINE, "OnlineConfig", "Clips the importance weight, and no token's gradient."),
    "gspo": (ONLINE, "OnlineConfig", "GRPO with one ratio per sequence."),
    "gspo_token": (ONLINE, "OnlineConfig", "GSPO with a gradient for each token."),
    "rloo": (ONLINE, "OnlineConfig", "REINFORCE with a leave-one-out baseline."),
    "reinforce": (ONLINE, "OnlineConfig", "REINFORCE with a moving-average baseline."),
    "reinforce_pp": (ONLINE, "OnlineConfig", "REINFORCE++: whitened returns, no critic."),
    "reinforce_pp_baseline": (ONLINE, "OnlineConfig", "REINFORCE++ with the group's mean."),
    "dpo": (PREFERENCE, "DpoConfig", "Direct preference optimisation; cDPO by label_smoothing."),
    "ipo": (PREFERENCE, "IpoConfig", "Identity preference optimisation."),
    "simpo": (PREFERENCE, "SimpoConfig", "Simple preference optimisation, without a reference."),
    "orpo": (PREFERENCE, "OrpoConfig", "Odds-ratio preference optimisation, no reference."),
    "slic": (PREFERENCE, "SlicConfig", "Sequence likelihood calibration (SLiC-HF)."),
    "sppo": (PREFERENCE, "SppoConfig", "Self-play preference optimisation, one iteration."),
    "spin": (PREFERENCE, "SpinConfig", "Self-play fine-tuning, one iteration."),
    "kto": (PREFERENCE, "KtoConfig", "Kahneman-Tversky optimisation of labelled completions."),
    "online_dpo": (SELECTION, "OnlineDpoConfig", "DPO on the policy's own best and worst."),
    "raft": (SELECTION, "RaftConfig", "Supervised fine-tuning on the policy's own best."),
    "rrhf": (PREFERENCE, "RrhfConfig", "Ranks the completions of a prompt by their rewards."),
}
"""Verb → (module, class of its configuration, help)."""


def add_train_commands(app: typer.Typer) -> None:
    """Adds `train` and its algorithms to the command line."""
    train = typer.Typer(
        name="train", help="Train a policy or a reward model.", no_args_is_help=True
    )
    for algorithm, (_, _, text) in ALGORITHMS.items():
        train.command(algorithm, help=text, cls=_command_class(algorithm))(_verb(algorithm))
    app.add_typer(train)


def _verb(algorithm: str) -> Callable[..., None]:
    def run(
        config: Annotated[Path, typer.Option(help="The YAML file.")],
        overrides: Annotated[
            list[str] | None, typer.Argument(help="field=value pairs that win over the file.")
        ] = None,
    ) -> None:
        os.environ.setdefault("TQDM_DISABLE", "1")  # the run has a progress bar of its own
        from rewardsvc.policy_client.train.config_base import load_config

        try:
            loaded = load_config(config, config_class(algorithm), overrides or ())
            result = run_algorithm(algorithm, loaded)
        except ConfigError as error:
            fail(str(error))
        except Exception as error:
            if not _speaks_for_itself(error):
                raise
            fail(f"{type(error).__name__}: {error}", 1)
        from rewardsvc.policy_client.train.launch import current_world, leave_world

        if current_world().is_main:
            typer.echo(str(result.model_dir))
        leave_world()

    return run


def _speaks_for_itself(error: Exception) -> bool:
    """Whether an error needs no traceback: our own, and a loss that is not finite any more."""
    ours = type(error).__module__.startswith("rewardsvc.")
    return ours or isinstance(error, FloatingPointError)


def config_class(algorithm: str) -> type[Any]:
    """The configuration's class of an algorithm."""
    module, name, _ = ALGORITHMS[algorithm]
    return getattr(import_module(module), name)  # type: ignore[no-any-return]


def run_algorithm(algorithm: str, config: Any) -> Any:
    """Trains; returns the algorithm's result, which has `model_dir`."""
    module = import_module(ALGORITHMS[algorithm][0])
    if algorithm == "sft":
        return module.run_sft(config)
    if algorithm == "rm":
        return module.run_rm(config)
    if algorithm == "prm":
        return module.run_prm(config)
    if ALGORITHMS[algorithm][0] == SELECTION:
        return module.run_selection(algorithm, config)
    if ALGORITHMS[algorithm][0] == PREFERENCE:
        return module.run_preference(algorithm, config)
    return module.run_online(algorithm, config)


def _command_class(algorithm: str) -> type[TyperCommand]:
    """A command whose help ends with the fields of its configuration, read when asked for."""

    class WithFields(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            super().format_help(ctx, formatter)
            typer.echo("\n Fields of the configuration\n")
            for line in _describe_fields(config_class(algorithm), _row(algorithm)):
                typer.echo(line)

    return WithFields


def _row(algorithm: str) -> dict[str, Any]:
    """What an online algorithm's row has for fields that the file leaves open."""
    if ALGORITHMS[algorithm][0] != ONLINE:
        return {}
    found = import_module(f"{ONLINE}.resolve").row_values(algorithm)
    return dict(found)


def _describe_fields(model: type[Any], row: dict[str, Any]) -> list[str]:
    lines = []
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else repr(field.get_default())
        default = f"{row[name]} by the row" if name in row else default
        lines.append(f"   {field.alias or name} ({default})")
        if field.description:
            lines.append(f"       {field.description}")
        if choices := _choices(field.annotation):
            lines.append(f"       One of {', '.join(choices)}.")
    return lines


def _choices(annotation: Any) -> list[str]:
    """The values of a closed set, also of one that may be None; empty for anything else."""
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return [value.value for value in annotation]
    return [choice for part in get_args(annotation) for choice in _choices(part)]
