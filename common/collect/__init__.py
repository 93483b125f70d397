"""Collects OGBench datasets on this machine, with OGBench's environments, scripted policies and procedures
(arXiv 2410.20092, appendix), for where its download host cannot be reached.

    python -m common.collect antmaze-large-navigate
    python -m common.collect cube-double-play --episodes 100 --p-random-action 0.2 --out data

Writes three files: the data in OGBench's format (`observations`, `actions`, `terminals`, `qpos`, `qvel`, for scenes
and puzzles `button_states`; a row is the state and the action taken in it), `-val.npz` with a tenth of the episodes
more, and `.json` with how they were made. They are not the official files: other random numbers, and in antmazes
another ant policy (train_ant.py). An episode's procedure stands in procedures.py.

The arrays do not depend on the number of workers. An interrupted collection keeps its episodes, in a hidden folder
beside the files, and the same command goes on with them. No JAX: the workers import this.
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import time
import zipfile
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np

from common import UserError
from common.collect import procedures
from common.collect.procedures import ANT_EXPERT, make_episode_player, play_seeded, procedure
from common.environments import PHYSICS
from common.files import alone
from common.progress import ProgressBar, say
from common.signals import termination_raises
from common.transitions import sha256
from common.workers import Workers, receive, send, usable_cores

CACHE_DIR = Path("~/.ogbench/data")  # ogbench's own, so that files are shared with other projects; ours in `collected`
KEEP_EVERY = 30.0  # seconds between two writings of what has been collected


def collect(
    name: str,
    folder: Path,
    episodes: int | None = None,
    seed: int = 0,
    p_random_action: float = 0.0,
    workers: int | None = None,
) -> Path:
    """Path of the collected training file, which is made if it is not there yet.

    name: short OGBench name. folder: made if need be. episodes: for training, None is OGBench's number. workers:
        processes, None is one per core.

    Raises UserError for a dataset that cannot be collected, senseless numbers, a folder that cannot be written,
    or a full disk.
    """
    plan = procedure(name)
    episodes = plan.episodes if episodes is None else episodes
    if episodes < 1 or (workers is not None and workers < 1) or seed < 0:
        raise UserError("the numbers of episodes and workers must be positive, the seed 0 or more.")
    if (total := episodes * plan.steps) >= 2**31:
        raise UserError(f"{episodes:,} episodes have {total:,} rows, and a dataset at most 2**31; collect fewer.")
    if not 0 <= p_random_action <= 1:
        raise UserError(f"--p-random-action {p_random_action} must lie between 0 and 1.")
    noise = f"-random{p_random_action}" if p_random_action else ""
    path = folder / f"{name}-{episodes}-episodes-seed{seed}{noise}.npz"
    if path.exists():  # it is moved there last of all; its folder may be read-only by now
        return path
    with _collecting_alone(path):
        if path.exists():
            return path
        validation = max(1, episodes // 10)
        number = min(workers or usable_cores(), episodes + validation)
        origin = {
            "ant_expert_sha256": sha256(ANT_EXPERT) if name.startswith("antmaze") else None,
            "physics": PHYSICS,
            "versions": {p: importlib.metadata.version(p) for p in ("ogbench", "mujoco", "gymnasium", "numpy")}
            | {"python": platform.python_version()},
        }
        print(
            f"collect {name}: {episodes:,} + {validation:,} episodes of {plan.steps:,} rows on {number} cores",
            flush=True,
        )
        with _disk_errors(folder):
            kept = _prepare_kept(path, origin)
        arrays, reached = _collect_episodes(name, episodes + validation, seed, p_random_action, number, kept)
        rows = episodes * plan.steps
        parts = {
            _validation_path(path): {key: x[rows:] for key, x in arrays.items()},
            path: {key: x[:rows] for key, x in arrays.items()},
        }
        record = {
            "name": name,
            "source": "collected on this machine, not OGBench's official file",
            "procedure": plan.description,
            "episodes": episodes,
            "official_episodes": plan.episodes,
            "validation_episodes": validation,
            "rows_per_episode": plan.steps,
            "seed": seed,
            "p_random_action": p_random_action,
            "goals_reached_per_episode": round(float(reached.mean()), 3),
        } | origin
        digests = {}
        with _disk_errors(folder):
            for file, contents in parts.items():
                with open(_temporary(file), "wb") as stream:
                    np.savez_compressed(stream, **contents)
                digests[file.name] = sha256(_temporary(file))
            _temporary(_record_path(path)).write_text(json.dumps(record | {"sha256": digests}, indent=2) + "\n")
            for file in (_record_path(path), *parts):  # the training file last: where it is, all are
                os.replace(_temporary(file), file)
    return path


def read_record(path: Path, digest: str) -> dict | None:
    """What the JSON beside a collected file says, or None if the file is not a collected one. Raises UserError if the
    two do not belong together. digest: the file's sha256."""
    try:
        record = json.loads(_record_path(path).read_text())
        if "procedure" not in record:  # somebody's own file
            return None
        expected = record["sha256"][path.name]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        what = f"{_record_path(path)}, which would say where the data are from, is damaged"
        raise UserError(f"{what}; if {path.name} was collected, delete both to collect it again.") from None
    if digest != expected:
        raise UserError(f"{path} is not what was collected (another sha256); delete it to collect again.")
    return record


def _collect_episodes(name, total, seed, p_random_action, num_workers, kept):
    """Arrays of all episodes in order, (total * steps, ...), and the goals reached in each, (total,). kept: the folder
    of those that an interrupted collection left; new ones are added to it twice a minute."""
    arrays, reached = {}, np.full(total, -1)

    def put(indices, episodes, goals):
        """episodes: key -> (number of indices, steps, ...)"""
        if not arrays:
            arrays.update({key: np.empty((total, *x.shape[1:]), x.dtype) for key, x in episodes.items()})
        for key, x in episodes.items():
            arrays[key][indices] = x
        reached[indices] = goals

    for indices, episodes, goals in _read_kept(kept):
        put(indices, episodes, goals)
    missing = np.flatnonzero(reached < 0).tolist()
    if found := total - len(missing):
        print(f"        {found:,} episodes are there from an interrupted collection", flush=True)
    waiting, new, checked = iter(missing), [], False
    began = written = time.monotonic()
    bar = ProgressBar(f"collect {name}", total, "episode", initial=found)
    try:
        players = [(name, seed, p_random_action)] * min(num_workers, len(missing))
        with termination_raises(), Workers(_work, players) as workers, bar:
            for pipe in workers.pipes:
                send(pipe, next(waiting))
            busy = set(workers.pipes)
            while busy:
                for pipe in wait(list(busy)):
                    index, episode, goals = receive(pipe)
                    put([index], {key: x[None] for key, x in episode.items()}, goals)
                    if not checked:  # for the files, and for the episodes that are kept until they are whole
                        size = sum(x.nbytes for x in arrays.values())
                        _check_space(kept.parent, size + size * len(missing) // total)
                        checked = True
                    new.append(index)
                    bar.update()
                    following = next(waiting, None)
                    if following is None:
                        busy.discard(pipe)
                    else:
                        send(pipe, following)
                if time.monotonic() - written > KEEP_EVERY:
                    _keep(kept, new, arrays, reached)
                    new, written = [], time.monotonic()
    except BaseException:
        _keep(kept, new, arrays, reached)
        if done := (reached >= 0).sum():
            say(f"        {done:,} of {total:,} episodes are kept; the same command goes on with them")
        raise
    if missing:
        rate = len(missing) / (time.monotonic() - began)
        steps = rate * next(iter(arrays.values())).shape[1]
        print(f"        {rate:.2f} episodes/s, {steps:,.0f} steps/s, {reached.mean():.2f} goals reached per episode")
    return {key: x.reshape(-1, *x.shape[2:]) for key, x in arrays.items()}, reached


def _work(pipe: Connection, name: str, seed: int, p_random_action: float) -> None:
    """Answers the number of an episode with the episode, until the pipe ends."""
    play = make_episode_player(name)
    while True:
        index = pipe.recv()
        pipe.send((index, *play_seeded(play, seed, index, p_random_action)))


# ---------------------------------------------------------------------------------------------------------------- files


@contextlib.contextmanager
def _collecting_alone(path: Path) -> Iterator[None]:
    """Makes the folder and lets one process at a time collect `path`; the others wait and then find it. Temporary files
    do not survive."""
    with contextlib.ExitStack() as files:
        with _disk_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            files.enter_context(alone(path.with_name(f".{path.stem}.lock"), f"collecting {path.name}"))
        try:
            yield
        finally:
            for file in (_record_path(path), _validation_path(path), path):
                _temporary(file).unlink(missing_ok=True)
            if path.exists():
                shutil.rmtree(_kept_folder(path), ignore_errors=True)


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write the collected data to {folder}: {error.strerror or error}. Name another folder with "
            f"--data-dir (scripts) or --out (common.collect)."
        ) from None


def _kept_folder(path: Path) -> Path:
    """Where the episodes of an unfinished collection lie."""
    return path.with_name(f".{path.stem}.episodes")


def _prepare_kept(path: Path, origin: dict) -> Path:
    """That folder, emptied of what another version of anything made."""
    folder = _kept_folder(path)
    made_by = json.dumps(origin | {"procedures_sha256": sha256(Path(procedures.__file__))}, indent=2)
    record = folder / "made_by.json"
    if not record.exists() or record.read_text() != made_by:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        record.write_text(made_by)
    return folder


def _read_kept(folder: Path) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]]:
    """(numbers of episodes, key -> (number, steps, ...), goals reached in each) of each file that `_keep` wrote."""
    for file in sorted(folder.glob("*.npz")):
        try:
            with np.load(file) as stored:
                episodes = dict(stored)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):  # the power failed; they are played again
            continue
        yield episodes.pop("index"), episodes, episodes.pop("reached")


def _keep(folder: Path, indices: list[int], arrays: dict, reached: np.ndarray) -> None:
    """Writes these episodes into the folder."""
    if not indices:
        return
    file = folder / f"{indices[0]}.npz"
    content = {"index": indices, "reached": reached[indices]} | {key: x[indices] for key, x in arrays.items()}
    try:
        with _disk_errors(folder.parent):
            with open(_temporary(file), "wb") as stream:
                np.savez(stream, **content)
            os.replace(_temporary(file), file)
    finally:
        _temporary(file).unlink(missing_ok=True)


def _check_space(folder: Path, size: int) -> None:
    """A full disk is better found at the first episode than after the last."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"{folder} has {free / 1e6:,.1f} MB free and the data need {size / 1e6:,.1f} MB; collect fewer episodes, "
            f"or name another folder with --data-dir (scripts) or --out (common.collect)."
        )


def _validation_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}-val.npz")


def _record_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp")
