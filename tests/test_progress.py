"""What a person reads while it runs."""

import os
import sys

import pytest

from common import progress


def test_a_reader_that_has_gone_does_not_stop_the_program(monkeypatch):
    """`| head -1`: what follows goes nowhere, and nobody complains."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        for _ in range(3):
            progress.say("x" * 100_000)


@pytest.fixture
def clock(monkeypatch):
    """Seconds, moved by hand."""
    now = [1000.0]
    monkeypatch.setattr("common.progress.time.monotonic", lambda: now[0])
    return now


def test_without_a_terminal_a_line_a_minute_says_rate_and_time_left(clock, capsys):
    with progress.ProgressBar("train", 1_000_000, "update", initial=400_000) as bar:
        clock[0] += 60
        bar.update(0)  # nothing to say yet
        for _ in range(120):
            clock[0] += 1
            bar.update(750)
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "train   400,750 of 1,000,000 updates, 12.3 updates/s, 13:32:19 left",
        "train   445,750 of 1,000,000 updates, 378 updates/s, 24:25 left",
    ]
    assert not captured.err


def test_progress_that_is_not_wanted_says_nothing(clock, capsys):
    with progress.ProgressBar("train", 100, "update", shown=False) as bar:
        clock[0] += 100
        bar.update(50)
    assert capsys.readouterr() == ("", "")
