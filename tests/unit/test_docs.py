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
