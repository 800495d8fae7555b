"""Compiles every Triton kernel for every target, with no GPU, and reports registers and spills.

Without options it compares with the checked-in report and exits with 1 if a kernel spills more
than before. `--write` replaces the report.
"""

from __future__ import annotations

import argparse
import sys

from rewardsvc.kernels.aot import TARGETS, compile_all, load_report, save_report, spill_regressions


def main() -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="replace the checked-in report")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="default: all")
    args = parser.parse_args()
    targets = args.target or list(TARGETS)
    if args.write and len(targets) < len(TARGETS):
        parser.error("--write needs all targets")
    report = compile_all(targets, log=print)
    if args.write:
        save_report(report)
        return 0
    _, before = load_report()
    regressions = spill_regressions(before, report)
    for sentence in regressions:
        print(sentence, file=sys.stderr)
    return 1 if regressions else 0


if __name__ == "__main__":
    sys.exit(main())
