"""Puts a run's report together: what the template shows, as plain values."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rewardsvc.policy_client.train.report.charts import draw_charts, draw_others, draw_phases
from rewardsvc.policy_client.train.report.findings import find, first_and_last
from rewardsvc.policy_client.train.report.svg import format_number
from rewardsvc.policy_client.train.run_data import RunData, SampleGroup, SampleRow

FOLDER = Path(__file__).parent
MAX_SAMPLES = 40
MAX_CHARACTERS = 8000
SECRET = re.compile(r"(^|_)(api_?key|secret|password|auth_token|credentials)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One number of the headline."""

    label: str
    value: str
    detail: str = ""
    good: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplePair:
    """One prompt and what the policy wrote for it, early and late; either may be missing."""

    prompt: str
    answer: str | None
    before: SampleRow | None
    after: SampleRow | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseShare:
    """How much of the time one phase took."""

    name: str
    seconds: float
    share: float
    colour: int


def render_page(runs: Sequence[RunData]) -> str:
    """The whole page as HTML. The first run is the one whose samples and times are shown."""
    run = runs[0]
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,  # completions, names and errors are hostile text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = visible
    environment.filters["number"] = format_number
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    early, late = pick_samples(run.samples)
    return environment.get_template("page.html.j2").render(
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_digest=digest,
        runs=runs,
        run=run,
        title=_title(runs),
        tiles=tiles(run),
        comparison=[(other, tiles(other)) for other in runs] if len(runs) > 1 else [],
        findings=[(other, find(other)) for other in runs],
        charts=draw_charts(runs),
        others=draw_others(runs),
        phases=phase_shares(run),
        phase_chart=draw_phases(run),
        waits_for_rewards="reward" in run.phases,
        samples=pair_samples(early, late)[:MAX_SAMPLES],
        early=early,
        late=late,
        config=flatten(run.config),
    )


def tiles(run: RunData) -> list[Tile]:
    """The headline's numbers, the most telling first."""
    found = [*_quality_tiles(run)]
    last = run.steps[-1] if run.steps else 0
    planned = f"of {run.total_steps}" if run.total_steps and last != run.total_steps else ""
    found.append(Tile(label="Steps", value=f"{last:,}", detail=planned))
    seconds = _number(run.summary, "train_seconds")
    if seconds is None and run.elapsed_s and math.isfinite(run.elapsed_s[-1]):
        seconds = run.elapsed_s[-1]
    if seconds is not None:
        found.append(Tile(label="Training time", value=duration(seconds)))
    rpcs = _number(run.summary, "reward_rpcs")
    if rpcs is not None:
        found.append(Tile(label="Reward calls", value=f"{rpcs:,.0f}", detail="over gRPC"))
    return found


def _quality_tiles(run: RunData) -> list[Tile]:
    """Held-out accuracy if the run's summary has it, else what its metrics say."""
    count = _number(run.summary, "num_prompts")
    found = []
    for kind in ("sampled", "greedy"):
        before = _number(run.summary, f"{kind}_before")
        after = _number(run.summary, f"{kind}_after")
        if before is not None and after is not None:
            behind = f", {count:,.0f} prompts" if count else ""
            margin = _half_width(after, count)
            found.append(
                Tile(
                    label=f"Held-out accuracy, {kind}",
                    value=f"{before:.1%} → {after:.1%}",
                    detail=f"{(after - before) * 100:+.1f} points{margin}{behind}",
                    good=None if after == before else after > before,
                )
            )
    for name, label in (("proxy", "Held-out reward"), ("true_quality", "Held-out true quality")):
        before = _number(run.summary, f"{name}_before")
        after = _number(run.summary, f"{name}_after")
        if before is not None and after is not None:
            found.append(
                Tile(
                    label=label,
                    value=f"{format_number(before)} → {format_number(after)}",
                    detail=f"{count:,.0f} prompts" if count else "",
                    good=None if after == before else after > before,
                )
            )
    if found:
        return found
    for name, label, higher_is_better in (
        ("eval/sampled_accuracy", "Held-out accuracy, sampled", True),
        ("eval/greedy_accuracy", "Held-out accuracy, greedy", True),
        ("eval_accuracy", "Held-out accuracy", True),
        ("eval_mean_token_accuracy", "Held-out token accuracy", True),
        ("eval_loss", "Held-out loss", False),
        ("reward", "Reward", True),
    ):
        ends = first_and_last(run, name)
        if ends is not None:
            first, last = ends
            percent = "accuracy" in name
            where = "first to last tenth of the run" if name == "reward" else "first to last"
            found.append(
                Tile(
                    label=label,
                    value=f"{format_number(first, percent=percent)} → "
                    f"{format_number(last, percent=percent)}",
                    detail=where,
                    good=(last > first) is higher_is_better if last != first else None,
                )
            )
    return found


def _half_width(share: float, count: float | None) -> str:
    """Half of a 95% interval for a share of `count` prompts, by the normal approximation."""
    if not count or not 0.0 <= share <= 1.0:
        return ""
    return f"; after ±{196 * math.sqrt(share * (1 - share) / count):.1f} (95%)"


def _number(summary: Mapping[str, Any], name: str) -> float | None:
    value = summary.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def pick_samples(
    groups: Sequence[SampleGroup],
) -> tuple[SampleGroup | None, SampleGroup | None]:
    """Which completions to show side by side: "before" and "after" if both are there, else the
    earliest and the latest of the tag that spans the most steps.
    """
    by_tag: dict[str, list[SampleGroup]] = {}
    for group in groups:
        if group.rows:
            by_tag.setdefault(group.tag, []).append(group)
    if "before" in by_tag and "after" in by_tag:
        return by_tag["before"][0], by_tag["after"][-1]
    if not by_tag:
        return None, None
    widest = max(by_tag.values(), key=lambda found: found[-1].step - found[0].step)
    return (widest[0], widest[-1]) if len(widest) > 1 else (None, widest[0])


def pair_samples(early: SampleGroup | None, late: SampleGroup | None) -> list[SamplePair]:
    """Rows of the same prompt, in the order of the late group; rows without a partner follow."""
    waiting: dict[str, list[SampleRow]] = {}
    for row in early.rows if early else ():
        waiting.setdefault(row.prompt, []).append(row)
    pairs = []
    for row in late.rows if late else ():
        partners = waiting.get(row.prompt)
        before = partners.pop(0) if partners else None
        pairs.append(SamplePair(prompt=row.prompt, answer=row.answer, before=before, after=row))
    for rows in waiting.values():
        for row in rows:
            pairs.append(SamplePair(prompt=row.prompt, answer=row.answer, before=row, after=None))
    return sorted(pairs, key=lambda pair: (pair.before is None) + (pair.after is None))


def phase_shares(run: RunData) -> list[PhaseShare]:
    """Time by phase over the whole run, in the order of the chart's colours."""
    sums = {
        name: math.fsum(value for value in series if math.isfinite(value))
        for name, series in run.phases.items()
        if any(math.isfinite(value) for value in series)
    }
    total = math.fsum(sums.values())
    return [
        PhaseShare(
            name=name, seconds=seconds, share=seconds / total if total else 0.0, colour=i % 8
        )
        for i, (name, seconds) in enumerate(sums.items())
    ]


def flatten(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A configuration as rows; what looks like a secret is not shown."""
    rows: list[tuple[str, str]] = []
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            rows.extend(flatten(value, f"{name}."))
        elif SECRET.search(str(key)) and value:
            rows.append((name, "(hidden)"))
        else:
            rows.append((name, value if isinstance(value, str) else json.dumps(value, default=str)))
    return rows


def visible(text: str) -> str:
    """Text with everything shown that would otherwise hide, reorder or break off what follows.

    Control and format characters become their code points, and a very long text is cut.
    """
    shown = "".join(
        f"⟨U+{ord(c):04X}⟩"
        if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in "\n\t"
        else c
        for c in text[:MAX_CHARACTERS]
    )
    left_out = len(text) - MAX_CHARACTERS
    return shown + (f"\n… {left_out:,} more characters" if left_out > 0 else "")


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    whole = round(seconds)
    if whole < 120:
        return f"{seconds:.0f} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _title(runs: Sequence[RunData]) -> str:
    algorithms = dict.fromkeys(run.algorithm.upper() for run in runs if run.algorithm)
    names = ", ".join(map(_name, runs))
    return f"{' and '.join(algorithms) or 'Run'}: {names}"


def _name(run: RunData) -> str:
    """The folder's, with its parent's where it is no more than the algorithm's."""
    folder = run.directory.resolve()
    return f"{folder.parent.name}/{folder.name}" if folder.name == run.algorithm else folder.name
