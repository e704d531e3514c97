"""
Prints a table of every test of transformers' mixins on LLaVA-Mini: passed, or skipped and why.

    python tests/upstream/report.py
"""

import sys
from collections import Counter
from pathlib import Path

import pytest
import transformers


class Table:
    """Collects what becomes of each test; a failure in any part of it counts as its failure."""

    def __init__(self):
        self.rows: dict[str, tuple[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport):
        known, _ = self.rows.get(report.nodeid, ("", ""))
        if report.failed:
            self.rows[report.nodeid] = ("FAILED", str(report.longrepr).splitlines()[-1])
        elif report.skipped and known != "FAILED":
            self.rows[report.nodeid] = ("skipped", report.longrepr[2].removeprefix("Skipped: "))
        elif report.when == "call" and not known:
            self.rows[report.nodeid] = ("passed", "")

    def pytest_collectreport(self, report: pytest.CollectReport):
        if report.skipped:
            self.rows[report.nodeid] = ("skipped", report.longrepr[2].removeprefix("Skipped: "))

    def print(self):
        print(f"\n## transformers {transformers.__version__}\n\n| Test | Result | Reason |\n| --- | --- | --- |")
        for nodeid, (outcome, reason) in sorted(self.rows.items()):
            print(f"| {nodeid.partition('::')[2] or nodeid} | {outcome} | {' '.join(reason.split())} |")
        counts = Counter(outcome for outcome, _ in self.rows.values())
        print(f"\n{', '.join(f'{number} {outcome}' for outcome, number in sorted(counts.items()))}")


def main() -> int:
    table = Table()
    status = pytest.main([str(Path(__file__).parent), "--no-header", "--no-summary", *sys.argv[1:]], plugins=[table])
    table.print()
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
