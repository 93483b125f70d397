"""D4RL (https://arxiv.org/abs/2004.07219) without its package, which needs mujoco-py: tasks, files, scores.

`hopper-medium`, `antmaze-large-play-v0`, `pen-human`: D4RL's own HDF5 file if it is there, else Minari's dataset of
that name, which holds other data (docs/d4rl.md says what differs, and what cannot be as it was). No JAX; and what this
benchmark alone needs is imported inside functions: OGBench's runs neither have it nor wait for it.
"""

import contextlib
import difflib
import functools
import hashlib
import os
import re
import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from common import UserError
from common.d4rl_environments import make_env, minari_maze, require
from common.environments import OGBENCH_NAMES
from common.files import alone, expanded
from common.transitions import Dataset, check_arrays, checked_numbers, clip_actions, sha256


class Task(NamedTuple):
    files: dict[str, str]  # version -> HDF5 file on D4RL's host; the first version is the default
    minari: str | None  # Minari's counterpart
    reference: tuple[float, float]  # returns that are scores of 0 and 100 (d4rl/infos.py)
    steps: int  # time limit


HOST = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
ROBOTS = {"halfcheetah": (-280.178953, 12135.0), "hopper": (-20.272305, 3234.3), "walker2d": (1.629008, 4592.3)}
HANDS = {
    "pen": (96.262799, 3076.8331017826877), "door": (-56.512833, 2880.5693087298737),
    "hammer": (-274.856578, 12794.134825156867), "relocate": (-6.425911, 4233.877797728884),
}  # fmt: skip
MAZE_FILES = {
    "umaze": "u-maze_noisy_multistart_False_multigoal_False",
    "umaze-diverse": "u-maze_noisy_multistart_True_multigoal_True",
    "medium-play": "big-maze_noisy_multistart_True_multigoal_False",
    "medium-diverse": "big-maze_noisy_multistart_True_multigoal_True",
    "large-play": "hardest-maze_noisy_multistart_True_multigoal_False",
    "large-diverse": "hardest-maze_noisy_multistart_True_multigoal_True",
}
KITCHEN_FILES = {
    "complete": "mini_kitchen_microwave_kettle_light_slider",
    "partial": "kitchen_microwave_kettle_light_slider",
    "mixed": "kitchen_microwave_kettle_bottomburner_light",
}
TASKS = {
    f"antmaze-{maze}": Task(
        {"v2": f"ant_maze_v2/Ant_maze_{file}_sparse_fixed.hdf5", "v0": f"ant_maze_new/Ant_maze_{file}_sparse.hdf5"},
        f"D4RL/antmaze/{maze}-v1", (0.0, 1.0), 700 if "umaze" in maze else 1000,
    ) for maze, file in MAZE_FILES.items()
} | {
    f"{robot}-{data}": Task(
        {"v2": f"gym_mujoco_v2/{robot}_{data.replace('-', '_')}-v2.hdf5"},
        f"mujoco/{robot}/medium-v0" if data == "medium" else None, reference, 1000,
    ) for robot, reference in ROBOTS.items() for data in ("medium", "medium-replay", "medium-expert")
} | {
    f"{hand}-{data}": Task(
        {"v1": f"hand_dapg_v1/{hand}-{data}-v1.hdf5"},
        f"D4RL/{hand}/{data}-v2", reference, 100 if hand == "pen" else 200,
    ) for hand, reference in HANDS.items() for data in ("human", "cloned", "expert")
} | {
    f"kitchen-{data}": Task({"v0": f"kitchen/{file}-v0.hdf5"}, f"D4RL/kitchen/{data}-v2", (0.0, 4.0), 280)
    for data, file in KITCHEN_FILES.items()
}  # fmt: skip

# ---------------------------------------------------------------------------------------------------------------- names


def resolve(env: str, suggest: bool = True) -> tuple[str, str] | None:
    """Task and version of a D4RL name, with or without its version (hopper-medium, antmaze-umaze-v0); None for others.

    Raises UserError for a version that there is not, and with `suggest` for a name that is nearly one of D4RL's.
    """
    name, dash, number = env.rpartition("-v")
    name, version = (name, f"v{number}") if dash and number.isdigit() else (env, None)
    if name in TASKS:
        versions = list(TASKS[name].files)
        if version not in (None, *versions):
            raise UserError(f"--env {env}: of D4RL's {name} there is {' and '.join(versions)} here.")
        return name, version or versions[0]
    close = difflib.get_close_matches(name.lower(), [*OGBENCH_NAMES, *TASKS], n=3, cutoff=0.75)
    if suggest and close and close[0] in TASKS:
        raise UserError(f"unknown environment '{env}': did you mean {', '.join(close)}?")
    words = set(re.split("[-/]", name)) - {"antmaze"}  # which OGBench has too
    if suggest and not close and (alike := [task for task in TASKS if task.split("-")[0] in words]):
        raise UserError(f"unknown environment '{env}': of D4RL's there are {', '.join(alike)} here.")
    return None


def normalized(returns: np.ndarray, reference: tuple[float, float]) -> np.ndarray:
    """D4RL's score 100 (R - low) / (high - low) of returns R; low is a random policy's return, high an expert's."""
    low, high = reference
    return 100 * (np.asarray(returns) - low) / (high - low)


# ---------------------------------------------------------------------------------------------------------------- files


def load(
    task: str,
    version: str,
    data: str = "auto",
    data_dir: str | None = None,
    dataset: str | None = None,
    rewards: str = "usual",
) -> Dataset:
    """Transitions and evaluation environment of a D4RL task, named as by `resolve`.

    data: `cache` takes files that are there, `download` Minari's counterpart, `auto` tries these in turn.
    data_dir: folder with D4RL's HDF5 files or Minari's datasets; None is D4RL's and Minari's own folders.
    dataset: an HDF5 file in D4RL's layout, wherever it is from.
    rewards: a name of `treat_rewards`; `usual` is r - 1 on antmaze and raw rewards elsewhere.

    Raises UserError for a missing package, a missing or damaged file, no network.
    """
    name, is_antmaze = f"{task}-{version}", task.startswith("antmaze")
    if task.startswith("kitchen"):
        raise UserError(f"--env {name} is not supported: FrankaKitchen-v1 of gymnasium-robotics fails with MuJoCo 4.")
    source, path = ("user", expanded(dataset)) if dataset else _find(task, version, data, data_dir)
    arrays = read_minari(path, task) if source == "minari" else read_hdf5(path, TASKS[task].steps)
    make = functools.partial(make_env, task, "minari" if source == "minari" else "d4rl", TASKS[task].steps)
    env = make()
    environment = env.spec.id if env.spec else "D4RL's maze with OGBench's ant"
    env.close()
    rows, masks, actions = arrays["rows"], arrays["masks"], arrays["actions"]
    arrays["actions"] = clip_actions(actions)
    last = np.arange(len(masks)) == len(masks) - 1  # a file may stop in a trajectory
    check_arrays(path, arrays | {"terminals": np.where(last, 1, 1 - masks)}, env)
    if (outside := (np.abs(actions) > 1 + 1e-6).any(axis=1)).any():
        print(f"NOTE    {outside.mean():.2%} of the actions leave [-1, 1] and are clipped, as FQL's authors do.")
    if source == "minari":
        print(
            f"WARNING These are NOT D4RL's data but Minari's {TASKS[task].minari}, recorded anew. The score is on "
            f"D4RL's scale and cannot be compared with published ones (docs/d4rl.md).",
            file=sys.stderr,
        )
    digest = _folder_sha256(path) if source == "minari" else sha256(path)
    if source == "d4rl":
        print(
            f"NOTE    {path} is taken for D4RL's by its name; no checksum of D4RL's is known here to compare its "
            f"sha256 with ({digest[:16]}...)."
        )
    usual = "minus_one" if is_antmaze else "raw"
    arrays["rewards"][rows] = treat_rewards(arrays, usual if rewards == "usual" else rewards)
    return Dataset(
        name=name,
        task=None,
        make_env=make,
        source=source,
        path=str(path.absolute()),
        sha256=digest,
        num_trajectories=int(trajectory_ends(arrays, count_terminals=not is_antmaze).sum()),
        environment=environment,
        reference=TASKS[task].reference,
        observations=arrays["observations"],
        actions=arrays["actions"],
        rewards=arrays["rewards"],
        masks=masks,
        rows=rows,
    )


def read_hdf5(path: Path, steps: int) -> dict[str, np.ndarray]:
    """D4RL's file by the rules of `d4rl.qlearning_dataset`, which all authors use: observations, actions, rewards and
    masks of all R rows, float32, and `rows` (N,) at which a transition starts. The next observation is the next row's;
    a row with a timeout is dropped, and the last. Where a file has no timeouts, those after `steps` rows are counted.

    Raises UserError if it cannot be read, lacks an array, or holds anything but finite numbers.
    """
    require("h5py", path.name)
    import h5py  # an extra

    names = ("observations", "actions", "rewards", "terminals", "timeouts")
    try:
        with h5py.File(path) as file:
            held = list(file)
            there = {name: file[name] for name in names if isinstance(file.get(name), h5py.Dataset)}
            arrays = {name: x[()] for name, x in there.items() if x.shape is not None}
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (OSError, RuntimeError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno:  # not of the content: locked, not readable, a folder
            raise UserError(f"cannot read {path}: {os.strerror(error.errno)}.") from None
        raise UserError(f"{path} is not an HDF5 file, or it is cut or damaged; get it again.") from None
    if missing := [name for name in names[:4] if name not in arrays]:
        if "episode_0" in held:
            raise UserError(f"{path} is one of Minari's; it belongs in its folder, see docs/d4rl.md.")
        more = f" and {len(held) - 10} more" if len(held) > 10 else ""
        raise UserError(f"{path} has no '{missing[0]}'; it holds {', '.join(held[:10]) or 'nothing'}{more}.")
    arrays = checked_numbers(path, arrays)
    columns = {name: x[:, 0] if x.shape[1:] == (1,) and name in names[2:] else x for name, x in arrays.items()}
    for name in names[3:]:  # check_arrays sees the others
        if name in columns and columns[name].ndim != 1:
            raise UserError(f"{path}: '{name}' has shape {columns[name].shape}, one number per row is needed.")
    if not np.isin(columns["terminals"], (0, 1)).all():
        raise UserError(f"{path}: 'terminals' must be 0 or 1 in every row.")
    terminals, timeouts = columns.pop("terminals"), columns.pop("timeouts", None)
    dropped = _counted_timeouts(terminals, steps) if timeouts is None else timeouts != 0
    rows = np.flatnonzero(~dropped[:-1]).astype(np.int32)
    if len(rows) == 0:
        raise UserError(f"{path} holds no transition.")
    return columns | {"masks": 1 - terminals, "rows": rows}


def _counted_timeouts(terminals: np.ndarray, steps: int) -> np.ndarray:
    """Rows at which D4RL's counter reaches the limit. After a terminal it goes on from 1, not 0, a slip of D4RL's."""
    timeouts, counter = np.zeros(len(terminals), bool), 0
    for i, terminal in enumerate(terminals):
        timeouts[i] = counter == steps - 1
        counter = 0 if timeouts[i] else 1 if terminal else counter + 1
    return timeouts


def read_minari(folder: Path, task: str) -> dict[str, np.ndarray]:
    """Minari's dataset in `folder`, arrays as of `read_hdf5`: an episode of T steps is T + 1 rows, the last of which no
    transition starts at. antmaze is labelled for one goal, as D4RL did: reward 1 and mask 0 within 0.45 of it.

    Raises UserError if it cannot be read, or is no such dataset.
    """
    require("minari", folder)
    import minari  # an extra

    parts: dict[str, list[np.ndarray]] = {x: [] for x in ("observations", "actions", "rewards", "masks", "rows")}
    row = 0
    try:
        dataset = minari.MinariDataset(folder / "data")
        for episode in tqdm(
            dataset.iterate_episodes(), "read", len(dataset), leave=False, unit="episode", disable=None
        ):
            states, length = episode.observations, len(episode.actions)
            if isinstance(states, dict):
                states = np.concatenate([states["achieved_goal"], states["observation"]], axis=1)
            if len(states) != length + 1:
                raise ValueError(f"episode {episode.id} has {len(states)} observations for {length} actions")
            parts["observations"].append(states)
            parts["actions"].append(np.concatenate([episode.actions, np.zeros_like(episode.actions[:1])]))
            parts["rewards"].append(np.append(episode.rewards, 0))
            parts["masks"].append(np.append(1.0 - episode.terminations, 1))
            parts["rows"].append(np.arange(row, row + length, dtype=np.int32))
            row += length + 1
        joined = {name: np.concatenate(part) for name, part in parts.items()}
    except Exception as error:  # of h5py, json, arrow, NumPy: Minari has none of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder} is not Minari's data for {task}, or they are cut or damaged: {reason}.") from None
    rows = joined.pop("rows")
    arrays = checked_numbers(folder, joined) | {"rows": rows}
    if task.startswith("antmaze"):
        reached = np.linalg.norm(arrays["observations"][rows + 1, :2] - minari_maze(task)[1], axis=1) <= 0.45
        arrays["rewards"][rows], arrays["masks"][rows] = reached, ~reached
    return arrays


def treat_rewards(arrays: dict[str, np.ndarray], how: str) -> np.ndarray:
    """Rewards (N,) of the transitions as authors train on them: `raw`; `minus_one`, r - 1, and `cql_antmaze`,
    4 (r - 0.5), on antmaze, the latter by Diffusion-QL; `standardized`, (r - mean) / std, its pen; `returns_1000`,
    1000 r / (best return - worst return), IDQL's locomotion. Raises UserError where this would divide by 0."""
    r = arrays["rewards"][arrays["rows"]].astype(np.float64)
    if how == "minus_one":
        return r - 1
    if how == "cql_antmaze":
        return 4 * (r - 0.5)
    if how not in ("standardized", "returns_1000"):
        return r
    starts = np.r_[0, np.flatnonzero(trajectory_ends(arrays))[:-1] + 1]
    scale = r.std(ddof=1) if how == "standardized" else np.ptp(np.add.reduceat(r, starts)) / 1000
    if not scale > 0:
        raise UserError(f"rewards cannot be {how}: they are equal everywhere.")
    return (r - r.mean() if how == "standardized" else r) / scale


def trajectory_ends(arrays: dict[str, np.ndarray], count_terminals: bool = True) -> np.ndarray:
    """Which transitions (N,) are a trajectory's last: none starts at the next row, or the mask is 0. A terminal does
    not count on antmaze, where the data go on at the goal."""
    ends = np.r_[np.diff(arrays["rows"]) != 1, True]
    return ends | (arrays["masks"][arrays["rows"]] == 0) if count_terminals else ends


def _find(task: str, version: str, data: str, data_dir: str | None) -> tuple[str, Path]:
    """("d4rl", HDF5 file) or ("minari", folder of the dataset), downloaded if need be."""
    if data == "collect":
        raise UserError(f"--env {task}: D4RL's data are not collected here; leave --data away.")
    if data_dir and not expanded(data_dir).is_dir():
        raise UserError(f"--data-dir {data_dir} is not a folder.")
    file, minari_id = Path(TASKS[task].files[version]), TASKS[task].minari
    d4rl_folder = expanded(data_dir or os.environ.get("D4RL_DATASET_DIR", "~/.d4rl/datasets"))
    minari_folder = expanded(data_dir or os.environ.get("MINARI_DATASETS_PATH", "~/.minari/datasets"))
    found = [path for path in (d4rl_folder / file.name, d4rl_folder / file) if path.exists()]
    if found and data != "download":
        return "d4rl", found[0]
    if found and minari_id is None:
        raise UserError(f"--data download is for Minari's data, which {task} has not; without it, {found[0]} is taken.")
    reason = f"{file.name} is not in {d4rl_folder} (it is at {HOST}/{file})"
    if minari_id is None:
        raise UserError(f"{reason}, and Minari has no counterpart.")
    if not (minari_folder / minari_id).exists():
        if data == "cache":
            raise UserError(f"{reason}, nor Minari's {minari_id} in {minari_folder}.")
        _download(minari_id, minari_folder, reason)
    return "minari", minari_folder / minari_id


def _download(minari_id: str, folder: Path, reason: str) -> None:
    """Minari's dataset into its folder, one process at a time, and whole: it arrives in another one. Asks the host
    first, because Minari tries for 25 silent seconds."""
    require("minari", f"{reason}, and Minari's {minari_id}")
    import minari  # an extra

    host = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    hidden = f".{minari_id.replace('/', '_')}"
    arriving, before = folder / f"{hidden}-download", os.environ.get("MINARI_DATASETS_PATH")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder / f"{hidden}.lock", f"downloading {minari_id}"):
            if (folder / minari_id).exists():
                return
            try:
                with contextlib.suppress(urllib.error.HTTPError):  # an answer all the same
                    urllib.request.urlopen(host, timeout=5).close()
                os.environ["MINARI_DATASETS_PATH"] = str(arriving)
                minari.download_dataset(minari_id)
                (folder / minari_id).parent.mkdir(parents=True, exist_ok=True)
                os.replace(arriving / minari_id, folder / minari_id)
            finally:
                os.environ.pop("MINARI_DATASETS_PATH", None)
                os.environ |= {"MINARI_DATASETS_PATH": before} if before else {}
                shutil.rmtree(arriving, ignore_errors=True)
    except Exception as error:  # of the network or the host, from several packages
        why = str(getattr(error, "reason", error)).splitlines() or [type(error).__name__]
        raise UserError(f"{reason}, and Minari's {minari_id} cannot be downloaded from {host}: {why[0]}.") from None


def _folder_sha256(folder: Path) -> str:
    """Of the lines that `sha256sum` prints for its files, sorted by name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = "".join(f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
    return hashlib.sha256(lines.encode()).hexdigest()
