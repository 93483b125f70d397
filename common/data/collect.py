"""Collects OGBench datasets on this machine, with OGBench's environments, scripted policies and procedures
(arXiv 2410.20092, appendix), for where its download host cannot be reached.

    python -m common.data.collect antmaze-large-navigate
    python -m common.data.collect cube-double-play --episodes 100 --p-random-action 0.2 --out data

Writes the data in OGBench's format, `-val.npz` with a tenth of the episodes more, and `.json` with how they were made.
They are not the official files: other random numbers, and in antmazes another ant policy (tools/train_ant.py).

Each episode is a file in a hidden folder until all are there, so that the same command goes on with an interrupted
collection. The data do not depend on interruptions or on the number of workers.
"""

import importlib.metadata
import io
import os
import platform
import shutil
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np

from common import UserError
from common.data import procedures
from common.data.dataset import PHYSICS
from common.data.files import once, read_json
from common.data.ogbench import CACHE_DIR, OGBENCH_NAMES, unknown_name
from common.system import expanded, progress_bar, sha256, usable_cores, write_atomically, write_json
from common.workers import Workers


def collect(
    name: str,
    /,
    out: Path = CACHE_DIR / "collected",
    episodes: int | None = None,
    seed: int = 0,
    p_random_action: float = 0.0,
    workers: int | None = None,
) -> Path:
    """Collects an OGBench dataset on this machine, unless it is there. Returns the path of the training file.

    Raises UserError for a dataset that cannot be collected or senseless numbers, and the system's error for a folder
    that cannot be written.

    Args:
        name: OGBench dataset, for example antmaze-large-navigate.
        out: Folder. The training scripts look in the default.
        episodes: Training episodes. None is OGBench's number.
        seed: Another seed is another dataset.
        p_random_action: Share of the actions that are replaced by uniformly random ones.
        workers: Processes. None is one per core.
    """
    if name not in OGBENCH_NAMES:
        raise unknown_name(name)
    official_episodes, steps, description = procedures.procedure(name)
    episodes = official_episodes if episodes is None else episodes
    if episodes < 1 or (workers is not None and workers < 1) or seed < 0 or not 0 <= p_random_action <= 1:
        raise UserError("episodes and workers must be positive, the seed 0 or more, p_random_action from 0 to 1.")
    noise = f"-random{p_random_action}" if p_random_action else ""
    path = expanded(out) / f"{name}-{episodes}-episodes-seed{seed}{noise}.npz"
    record = {
        "name": name,
        "source": "collected on this machine, not OGBench's official file",
        "procedure": description,
        "episodes": episodes,
        "official_episodes": official_episodes,
        "validation_episodes": max(1, episodes // 10),
        "rows_per_episode": steps,
        "seed": seed,
        "p_random_action": p_random_action,
        "goals_reached_per_episode": None,
        "ant_expert_sha256": sha256(procedures.ANT_EXPERT) if name.startswith("antmaze") else None,
        "physics": PHYSICS,
        "versions": {p: importlib.metadata.version(p) for p in ("ogbench", "mujoco", "gymnasium", "numpy")}
        | {"python": platform.python_version()},
    }
    return once(path, "collecting", lambda: _collect(path, record, workers or usable_cores()))


def _collect(path: Path, record: dict, workers: int) -> None:
    """Plays the episodes that are missing, joins all, and writes the three files, the training file last."""
    folder = path.with_name(f".{path.stem}.episodes")
    made_by = record | {"procedures_sha256": sha256(Path(procedures.__file__))}
    if read_json(folder / "made_by.json") != made_by:  # episodes of different versions are not mixed
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write_json(folder / "made_by.json", made_by)
    name, episodes, more = (record[key] for key in ("name", "episodes", "validation_episodes"))
    files = [folder / f"{index}.npz" for index in range(episodes + more)]
    print(f"collect {name}: {episodes:,} + {more:,} episodes of {record['rows_per_episode']:,} rows", flush=True)
    missing = [index for index, file in enumerate(files) if not file.exists()]
    shares = [missing[i::workers] for i in range(min(workers, len(missing)))]
    pool = Workers(_work, [(files, share, record) for share in shares])
    bar = progress_bar(f"collect {name}", len(files), "episode", initial=len(files) - len(missing))
    with pool, bar:
        for _ in missing:
            pool.receive(wait(pool.pipes)[0])  # type: ignore[arg-type]
            bar.update()

    reached = [_read(file, "reached") for file in files]
    record |= {"goals_reached_per_episode": round(float(np.mean(reached)), 3), "sha256": {}}
    with np.load(files[0]) as first:
        keys = [key for key in first if key != "reached"]
    # The training file gets its name last of all.
    validation, training = path.with_name(f"{path.stem}-val.npz"), folder / path.name
    for target, its_files in ((validation, files[episodes:]), (training, files[:episodes])):
        _write(target, {key: np.concatenate([_read(file, key) for file in its_files]) for key in keys})
        record["sha256"][target.name] = sha256(target)
    write_json(path.with_suffix(".json"), record)
    os.replace(training, path)
    shutil.rmtree(folder, ignore_errors=True)


def _work(pipe: Connection, files: list[Path], share: list[int], record: dict) -> None:
    """Writes the episodes of these numbers, and says so after each."""
    player = procedures.make_player(record["name"])
    for index in share:
        arrays, reached = procedures.play(player, record["seed"], index, record["p_random_action"])
        _write(files[index], arrays | {"reached": np.array(reached)})
        pipe.send(index)
    pipe.recv()  # until the parent ends: a closed pipe is a worker that failed


def _read(file: Path, key: str) -> np.ndarray:
    with np.load(file) as arrays:
        return arrays[key]


def _write(file: Path, arrays: dict[str, np.ndarray]) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    write_atomically(file, content.getvalue())


if __name__ == "__main__":
    import tyro  # not above, because each worker imports this module

    from common.args import one_line_errors

    with one_line_errors("common.data.collect"):
        print(tyro.cli(collect, prog="python -m common.data.collect"))
