"""Collects an OGBench dataset on this machine (common/collect/__init__.py says how)."""

import sys
from dataclasses import asdict, dataclass
from typing import Annotated

import tyro

from common import cli
from common.collect import CACHE_DIR, collect
from common.environments import resolve_name
from common.files import expanded


@dataclass(frozen=True)
class Args:
    name: Annotated[str, tyro.conf.Positional]
    """OGBench dataset, for example antmaze-large-navigate"""
    episodes: int | None = None
    """training episodes; None is OGBench's number"""
    workers: int | None = None
    """processes; None is one per core. They do not change the data"""
    seed: int = 0
    """another seed is another dataset"""
    p_random_action: float = 0.0
    """share of the actions that are replaced by uniformly random ones"""
    out: str | None = None
    """folder; None is ~/.ogbench/data/collected, where the training scripts look"""


def main(args: Args) -> None:
    name, _ = resolve_name(args.name)
    options = asdict(args) | {"name": name, "folder": expanded(args.out or CACHE_DIR / "collected")}
    del options["out"]
    print(collect(**options))


if __name__ == "__main__":
    with cli.one_line_errors("common.collect"):
        main(cli.command_line(Args, sys.argv[1:], program="python -m common.collect"))
