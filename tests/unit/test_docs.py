"""What the documentation says is what the code does, where that can be checked."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_of_scorers_is_what_the_models_say() -> None:
    script = ROOT / "scripts" / "gen_scorer_docs.py"
    done = subprocess.run(
        [sys.executable, script, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_links_between_pages_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    assert pages
    for page in pages:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_path_named_in_the_documentation_exists() -> None:
    named = re.compile(r"`((?:docs|scripts|examples|tests|benchmarks|proto|constraints)/[\w./-]+)`")
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in named.findall(page.read_text("utf-8")):
            assert (ROOT / target).exists(), f"{page.name}: {target}"


def test_the_page_of_algorithms_has_every_row_and_dialect() -> None:
    from rewardsvc.policy_client.algorithms.compat import Compat
    from rewardsvc.policy_client.algorithms.presets import PRESETS

    page = (ROOT / "docs" / "algorithms.md").read_text("utf-8")
    for name, row in PRESETS.items():
        (line,) = re.findall(rf"^\| `{name}` \| .* \| \d × \d \|$", page, re.MULTILINE)
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[-2] == str(row.num_generations)
        assert cells[-1] == f"{row.num_epochs} × {row.num_minibatches}"
        assert cells[-4] == row.aggregation
    assert all(f"`{compat}`" in page for compat in Compat)
