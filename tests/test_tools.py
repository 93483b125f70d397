"""What stands in tools/, run as a person does."""

import subprocess
import sys

from helpers import ROOT


def test_bench_prints_a_row_per_script():
    argv = ["drol", "fql", "--dims", "3", "2", "--rounds", "1", "--seconds", "0.1"]
    argv += ["--hidden-dims", "16", "--batch-size", "256"]
    command = [sys.executable, str(ROOT / "tools" / "bench.py"), *argv]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    header, _, *rows = [line.strip("| ").split(" | ") for line in output.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows] == ["drol", "fql"]
    for row in rows:
        cells = dict(zip(header, row))
        assert float(cells["scan / host"]) > 0
        assert float(cells["GFLOP/update"]) > 0
    assert "critic at all too" in output
