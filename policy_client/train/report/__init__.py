"""A run as one HTML page that needs nothing else: no network, no library, no folder beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rewardsvc.policy_client.train.report.page import render_page
from rewardsvc.policy_client.train.run_data import read_run

__all__ = ["write_report"]

REPORT_FILE = "report.html"


def write_report(run_dir: Path | Sequence[Path], out: Path | None = None) -> Path:
    """Writes the report of a run, or of several runs drawn over each other.

    Works on finished runs, on killed ones, on ones that are still going on, and on empty folders.

    Args:
        run_dir: A trainer's `output_dir`, or several; the first gives samples and times.
        out: Where to write. Default: `report.html` in the first run's folder.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: If a run's folder does not exist.
        ValueError: If there is no run.
    """
    directories = [run_dir] if isinstance(run_dir, str | Path) else list(run_dir)
    if not directories:
        raise ValueError("run_dir is empty; give at least one run's folder")
    runs = [read_run(Path(directory)) for directory in directories]
    page = render_page(runs)
    out = Path(directories[0]) / REPORT_FILE if out is None else Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")
    return out
