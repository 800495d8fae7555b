"""`rewardsvc export-onnx CONFIG_OR_MODEL -o FOLDER`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rewardsvc.cli import fail
from rewardsvc.errors import ConfigError, ItemFailure

if TYPE_CHECKING:
    from rewardsvc.scorers.orm import Orm
    from rewardsvc.scorers.prm import Prm

EXPORTABLE = ("orm", "prm")


def export_onnx(
    source: Annotated[
        str, typer.Argument(help="The server's YAML file, or a model: folder or hub id.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write; must hold no export.")],
    scorer: Annotated[
        str | None, typer.Option(help="Which `orm` or `prm` of the YAML file to export.")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantise to 8 bits and report how ranks agree.")
    ] = False,
    opset: Annotated[int, typer.Option(min=17, help="ONNX operator set.")] = 18,
    samples: Annotated[
        Path | None,
        typer.Option(
            help="JSONL with `completion` and optionally `prompt`, to compare the ranks of int8 "
            "and float32 on; without it, random tokens."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Export a reward model for ONNX Runtime, and check that it computes the same."""
    from rewardsvc.scorers._onnx import export_scorer

    if samples is not None and not int8:
        fail("--samples: only with --int8, whose ranks are compared")
    try:
        described, worst = export_scorer(
            _scorer(source, scorer),
            out,
            precision="int8" if int8 else "float32",
            opset=opset,
            samples=_read_samples(samples) if samples is not None else (),
        )
    except ConfigError as error:
        fail(str(error))
    except ItemFailure as failure:
        fail(f"{samples}: a sample cannot be scored: {failure.error.message}")
    if as_json:
        found = {**described.model_dump(), "folder": str(out), "graph_error": worst}
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo(f"{out}: {described.scorer} of {described.source}, {described.precision}")
    typer.echo(f"float32 graph against torch: {worst:.1e} of the largest number")
    agreement = described.agreement
    if agreement is not None:
        typer.echo(
            f"int8 against float32 on {agreement.num_samples} samples: Spearman "
            f"{agreement.spearman:.4f}, Kendall {agreement.kendall:.4f}, pairs ordered alike "
            f"{agreement.pairwise:.4f}, largest difference {agreement.max_difference:.4f} "
            f"(scores deviate by {agreement.deviation:.4f})"
        )
    typer.echo(f"serve it with: {{type: {described.scorer}, model: {out}, backend: onnx}}")


def _scorer(source: str, name: str | None) -> Orm | Prm:
    """The scorer to export, built and not started.

    Raises:
        ConfigError: If there is no such scorer, or it is no model.
    """
    from rewardsvc.config import load_config, parse_scorers
    from rewardsvc.engine.host import EngineHost
    from rewardsvc.scorers import scorer_class
    from rewardsvc.scoring.build import BuildEnv

    file = Path(source)
    if file.is_file():
        sections = {
            key: value
            for key, value in load_config(file).scorers.items()
            if value.type in EXPORTABLE
        }
        base_dir = file.resolve().parent
        if name is None and len(sections) == 1:
            (name,) = sections
        if name not in sections:
            raise ConfigError(
                f"--scorer: {name!r} is not one of the file's scorers of type orm or prm: "
                f"{', '.join(sections) or 'there are none'}"
            )
    else:
        if name is not None:
            raise ConfigError(f"--scorer: {name!r}, but {source!r} is not a YAML file")
        name, base_dir = "model", Path.cwd()
        sections = dict(parse_scorers(name, {"type": "orm", "model": source}))
    section: Any = sections[name].model_copy(
        # Float32, for the graph is checked against it; eager, for the attention operators of the
        # exporter's other forms are slower or not to be had for batches.
        update={"dtype": "float32", "attention": "eager", "backend": "torch"}
    )
    env = BuildEnv(name=name, base_dir=base_dir, child=_no_child, engine=EngineHost())
    built: Any = scorer_class(section.type)(section, env)
    return built  # type: ignore[no-any-return]


def _no_child(name: str) -> Any:
    raise ConfigError(f"a model has no child, and asked for {name!r}")


def _read_samples(file: Path) -> list[Any]:
    from rewardsvc.scoring.types import Sample

    samples = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"--samples: {file} cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            samples.append(Sample(prompt=row.get("prompt", ""), completion=row["completion"]))
        except (ValueError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"--samples: {file}:{number} is not an object with `completion`: {error}"
            ) from None
    if len(samples) < 2:
        raise ConfigError(f"--samples: {file} has {len(samples)} samples; ranks need at least two")
    return samples
