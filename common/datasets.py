"""From an environment's name to its transitions and its evaluation environment.

What the arrays mean, for OGBench and for one's own file (`--dataset FILE.npz`):

    observations  (R, S)  the state before the action
    actions       (R, A)  in [-1, 1]
    rewards       (R,)    OGBench files have none: they are computed for the task (-1 per unsolved part, 0 when solved)
    masks         (R,)    0 stops the bootstrap: the episode ended because the task was solved or failed. Else 1.
    terminals     (R,)    1 on the last row of a trajectory, whatever the reason (a time limit too)
    next_observations  (R, S)  optional in one's own file; without it, the next row's observation is taken

`masks` and `terminals` are not the same thing. OGBench's trajectories go on after a success and end at a time limit: a
row can have mask 0 without being terminal, and a terminal row has mask 1 where the task was not solved. OGBench's
rewards and masks belong to the state before the action (s, not s').

In an OGBench file the terminal row holds a final state that no action follows. In one's own file each row is a
transition; at the end of a trajectory whose mask is 1 the next state would be needed but is not there, so without
`next_observations` that row is left out.

This module does not import JAX: the evaluation workers import it.
"""

import contextlib
import difflib
import functools
import hashlib
import re
import socket
import sys
import tempfile
import urllib.error
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import mujoco
import numpy as np

from common import UserError

CACHE_DIR = Path("~/.ogbench/data")  # ogbench's own, so that files are shared with other projects

# Domain -> sizes, kinds of data. Singletask versions exist for all of these in ogbench >= 1.2.
OGBENCH = {
    "pointmaze": (("medium", "large", "giant", "teleport"), ("navigate", "stitch")),
    "antmaze": (("medium", "large", "giant", "teleport"), ("navigate", "stitch", "explore")),
    "humanoidmaze": (("medium", "large", "giant"), ("navigate", "stitch")),
    "antsoccer": (("arena", "medium"), ("navigate", "stitch")),
    "cube": (("single", "double", "triple", "quadruple"), ("play", "noisy")),
    "scene": ((), ("play", "noisy")),
    "puzzle": (("3x3", "4x4", "4x5", "4x6"), ("play", "noisy")),
}
OGBENCH_NAMES = [
    "-".join(part)
    for domain, (sizes, kinds) in OGBENCH.items()
    for part in ([(domain, size, kind) for size in sizes for kind in kinds] or [(domain, kind) for kind in kinds])
    if part != ("antmaze", "giant", "explore")
]
DEFAULT_TASK = {"antsoccer": 4, "cube": 2, "scene": 2, "puzzle": 4}  # the benchmark's; 1 elsewhere

# Centres of the four modes, their mean rewards, and how much reward a unit of distance from the centre costs.
# `bandit` is figure 1 of DriftQL (arXiv 2606.00350), `bandit-corners` the toy of Diffusion-QL (arXiv 2208.06193).
BANDITS = {
    "bandit": ([[0.0, 0.8], [-0.8, 0.0], [0.8, 0.0], [0.0, -0.8]], [2.0, 1.0, 5.0, 5.0], 10.0),
    "bandit-corners": ([[-0.8, 0.8], [-0.8, -0.8], [0.8, 0.8], [0.8, -0.8]], [3.0, 0.0, 1.5, 5.0], 0.0),
}


@dataclass(frozen=True)
class Dataset:
    """Transitions on the host, as trajectories of consecutive rows, and how to make the environment they are from."""

    name: str
    """environment, as in `--env`, without the task"""
    task: int | None
    """OGBench task, 1 to 5; None elsewhere"""
    make_env: Callable[..., gymnasium.Env]
    """makes one evaluation environment, with gymnasium's render_mode if given; can be sent to another process"""
    source: str
    """official (OGBench's files), collected, builtin, or user (a file that is not known to be official)"""
    path: str | None
    sha256: str | None
    observations: np.ndarray  # (R, S) float32
    actions: np.ndarray  # (R, A) float32, within +-(1 - 1e-5)
    rewards: np.ndarray  # (R,) float32
    masks: np.ndarray  # (R,) float32
    rows: np.ndarray  # (N,) int32, rows at which a transition starts
    num_trajectories: int
    next_observations: np.ndarray | None = None  # (R, S), only where it is not the next row's observation
    collection: dict | None = None
    """how collected data were made (common/collect.py)"""

    @property
    def observation_dim(self) -> int:
        return self.observations.shape[1]

    @property
    def action_dim(self) -> int:
        return self.actions.shape[1]

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What goes to the device."""
        names = ("observations", "actions", "rewards", "masks", "rows", "next_observations")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def describe(self) -> dict:
        """What `config.json` and `result.json` say about the data."""
        return {
            "name": self.name,
            "source": self.source,
            "path": self.path,
            "transitions": len(self.rows),
            "trajectories": self.num_trajectories,
            "sha256": self.sha256,
            "collection": self.collection,
        }

    def summary(self) -> str:
        """Two lines for the eye, printed when a run starts."""
        rewards, masks = self.rewards[self.rows], self.masks[self.rows]
        return (
            f"data    {self.name}{f' task {self.task}' if self.task else ''}: {len(self.rows):,} transitions, "
            f"{self.num_trajectories:,} trajectories, {self.source}{f' ({self.path})' if self.path else ''}\n"
            f"        observations {self.observation_dim}, actions {self.action_dim}, rewards {rewards.min():.3g} to "
            f"{rewards.max():.3g}, {(masks == 0).mean():.3%} of masks at 0, "
            f"{sum(x.nbytes for x in self.arrays.values()) / 1e6:,.0f} MB on the device"
        )


def load_dataset(
    env: str,
    task: int | None = None,
    data: str = "auto",
    data_dir: str | None = None,
    dataset: str | None = None,
    collect_episodes: int | None = None,
) -> Dataset:
    """Transitions and evaluation environment for `env`.

    env: short OGBench name (antmaze-large-navigate), full OGBench id, `bandit`, `bandit-corners`, or, with `dataset`,
        any gymnasium id.
    task: OGBench task 1 to 5; None is the benchmark's default.
    data: `cache` reads `data_dir` only, `download` asks OGBench's host only, `collect` takes what was collected on this
        machine or collects it, `auto` tries them in this order.
    data_dir: folder of OGBench files; None is OGBench's own cache. Collected files are in its subfolder `collected`.
    dataset: one's own npz file, or for an OGBench name one in OGBench's format (see the top of this module).
    collect_episodes: training episodes to collect; None is OGBench's number.

    Raises UserError for anything that the user can mend: a name, a missing or damaged file, no network.
    """
    if dataset is not None:
        path = Path(dataset).expanduser()
        if _is_ogbench_name(env) and _in_ogbench_format(path):
            return _load_ogbench(*resolve_name(env, task), path)
        if task is not None:
            raise UserError("--task belongs to OGBench datasets; it has no meaning with your own rewards.")
        return _load_user_dataset(env, path)
    if env in BANDITS:
        if task is not None:
            raise UserError(f"--env {env} has no tasks; leave --task out.")
        return _make_bandit_dataset(env)
    name, task = resolve_name(env, task)
    folder = Path(data_dir or CACHE_DIR).expanduser()
    return _load_ogbench(name, task, _find_file(name, folder, data, data_dir is not None, collect_episodes))


def resolve_name(env: str, task: int | None = None) -> tuple[str, int]:
    """Short OGBench name and task from a short name or a full id (antmaze-large-navigate-singletask-task3-v0)."""
    match = re.fullmatch(r"(?P<name>.+?)(-singletask(-task(?P<task>\d+))?)?(-v0)?", env)
    name = match["name"] if match else env
    if name not in OGBENCH_NAMES:
        if name.startswith("visual-") or name.startswith("powderworld"):
            raise UserError(f"--env {env}: pixel observations are not supported; the networks here take state vectors.")
        close = difflib.get_close_matches(name, [*OGBENCH_NAMES, *BANDITS], n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(close)}?" if close else f"for example {OGBENCH_NAMES[0]}."
        raise UserError(f"unknown environment '{env}': {hint} For your own data add --dataset FILE.npz.")
    if match["task"]:
        if task is not None and task != int(match["task"]):
            raise UserError(f"--env {env} names task {match['task']} and --task says {task}; give one of them.")
        task = int(match["task"])
    if task is None:
        task = DEFAULT_TASK.get(name.split("-")[0], 1)
    if not 1 <= task <= 5:
        raise UserError(f"task {task} does not exist: every OGBench environment has tasks 1 to 5.")
    return name, task


# -------------------------------------------------------------------------------------------------- environments


def make_ogbench_env(name: str, task: int, **kwargs) -> gymnasium.Env:
    """Evaluation environment of a singletask OGBench dataset.

    Success is computed on the state after the action (`success_timing='post'`), as in OGBench 1.1.0, with which the
    papers' numbers were made; newer versions compute it on the state before the action.
    """
    env_name = "-".join([*name.split("-")[:-1], "singletask", f"task{task}", "v0"])
    return make_raw_ogbench_env(env_name, success_timing="post", **kwargs)


def make_raw_ogbench_env(env_id: str, **kwargs) -> gymnasium.Env:
    """Any of OGBench's environments, without its warnings and temporary files."""
    # The arms' environments make their action space anew at each use, and Gymnasium warns of its precision each time.
    warnings.filterwarnings("ignore", message=".*precision lowered by casting")
    with _quiet(), _temporary_files_removed():
        import ogbench  # noqa: F401  (registers the environments)

        env = gymnasium.make(env_id, disable_env_checker=True, **kwargs)
    if "maze" in env_id or "antsoccer" in env_id:  # the arms' models have no margins, and are compiled at the first reset
        halve_contact_margins(env)
    return env


def halve_contact_margins(env: gymnasium.Env) -> None:
    """Contacts as before MuJoCo 3.5, which adds up the margins of two geoms where older versions took the larger: half
    of each is the same where both are equal. OGBench's data and the papers' scores are older."""
    if tuple(int(part) for part in mujoco.__version__.split(".")[:2]) >= (3, 5):
        env.unwrapped.model.geom_margin[:] /= 2


def make_user_env(env: str, **kwargs) -> gymnasium.Env:
    """Any gymnasium environment, its observation flattened and its actions rescaled to [-1, 1]."""
    with _quiet():
        made = gymnasium.make(env, disable_env_checker=True, **kwargs)
        return gymnasium.wrappers.RescaleAction(gymnasium.wrappers.FlattenObservation(made), -1.0, 1.0)


class Bandit(gymnasium.Env):
    """One constant state, a 2-D action, one step. The reward is that of the nearest mode, without its noise."""

    observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, name: str, render_mode: str | None = None):
        centers, means, self.slope = BANDITS[name]
        self.centers, self.means = np.array(centers), np.array(means)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: np.ndarray):
        distances = np.linalg.norm(self.centers - action, axis=1)
        nearest = distances.argmin()
        reward = self.means[nearest] - self.slope * distances[nearest]
        best = self.means == self.means.max()
        info = {"success": distances[best].min() <= 0.2, "support": distances[nearest] <= 0.2, "xy": np.array(action)}
        return np.ones(1, np.float32), float(reward), True, False, info

    def render(self) -> None:
        """Nothing to film in one step."""


@contextlib.contextmanager
def _quiet():
    """Hides what ogbench's dependencies warn of on every machine without a screen."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="glfw")
        warnings.filterwarnings("ignore", module="gymnasium")
        yield


@contextlib.contextmanager
def _temporary_files_removed():
    """ogbench writes each maze to a temporary XML file and leaves it; MuJoCo reads it once."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before


# --------------------------------------------------------------------------------------------------------- files


def _is_ogbench_name(env: str) -> bool:
    with contextlib.suppress(UserError):
        return bool(resolve_name(env))
    return False


def _in_ogbench_format(path: Path) -> bool:
    """Whether rewards have to be computed from the positions in the file."""
    with contextlib.suppress(OSError, ValueError, EOFError, zipfile.BadZipFile), np.load(path) as file:
        return "qpos" in file and "rewards" not in file
    return False


def _find_file(name: str, folder: Path, data: str, given: bool, episodes: int | None) -> Path:
    """Path of the npz file of `name`, downloaded or collected if need be."""
    from common.collect import collect

    path = folder / f"{name}-v0.npz"
    if data == "collect":
        return collect(name, folder / "collected", episodes)
    if data == "cache" or (data == "auto" and path.exists()):
        if given and not folder.is_dir():
            raise UserError(f"--data-dir {folder} is not a folder.")
        if not path.exists():
            raise UserError(f"{path} does not exist, and --data cache downloads nothing; --data download would.")
        return path
    if data == "download" and path.exists():
        print(f"{path} is there already; delete it to download it again.")
        return path
    if given and folder.exists() and not folder.is_dir():
        raise UserError(f"--data-dir {folder} is not a folder.")
    try:
        return _download(name, folder)
    except Unreachable as error:
        if data == "download":
            raise UserError(
                f"{path} does not exist and OGBench's download host cannot be reached ({error}). --data collect makes "
                f"the data on this machine; or copy {path.name} from a machine with a network and name its folder with "
                f"--data-dir."
            ) from None
        print(
            f"WARNING {path} does not exist and OGBench's download host cannot be reached ({error}): falling back to "
            f"data collected on this machine.",
            file=sys.stderr,
        )
    return collect(name, folder / "collected", episodes)


class Unreachable(Exception):
    """OGBench's host does not answer, and why."""


def _download(name: str, folder: Path) -> Path:
    """Fetches train and validation file through ogbench, which writes to a temporary name first."""
    with _quiet():
        import ogbench
    path = folder / f"{name}-v0.npz"
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # a host that drops packets would hang for minutes otherwise
    try:
        ogbench.download_datasets([f"{name}-v0"], str(folder))
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise Unreachable(getattr(error, "reason", error)) from None
    except OSError as error:
        raise UserError(f"cannot write the dataset to {folder}: {error.strerror or error}.") from None
    finally:
        socket.setdefaulttimeout(timeout)
        for file in (f"{name}-v0.npz.tmp", f"{name}-v0-val.npz.tmp"):
            with contextlib.suppress(OSError):
                (folder / file).unlink()
    return path


def _read_npz(path: Path, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """The named arrays of an npz file as float32, checked: present, numeric, of one length, finite. Objects are never
    unpickled."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise UserError(f"{path} is a single array, not an npz file.")
            missing = [key for key in required if key not in file]
            if missing:
                raise UserError(f"{path} has no '{missing[0]}'; it holds {', '.join(file.files) or 'nothing'}.")
            arrays = {key: file[key] for key in (*required, *optional) if key in file}
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (zipfile.BadZipFile, zlib.error, EOFError):
        raise UserError(f"{path} is truncated or damaged; delete it and get it again.") from None
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise UserError(
                f"{path} holds pickled objects or is not an npz file; such files are never loaded."
            ) from None
        raise UserError(f"{path} is truncated or damaged ({error}); delete it and get it again.") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from None

    length = len(arrays[required[0]]) if arrays[required[0]].ndim else 0
    for key, x in arrays.items():
        if x.dtype.kind not in "fiub":
            raise UserError(f"{path}: '{key}' has dtype {x.dtype}, numbers are needed.")
        if x.ndim == 0 or len(x) != length:
            raise UserError(f"{path}: '{key}' has shape {x.shape}, but '{required[0]}' has {length} rows.")
        if not np.isfinite(x).all():
            raise UserError(f"{path}: '{key}' contains NaN or infinity, first in row {_first_bad_row(x)}.")
        arrays[key] = x if key == "button_states" else x.astype(np.float32)
    if length == 0:
        raise UserError(f"{path} is empty.")
    return arrays


def _first_bad_row(x: np.ndarray) -> int:
    return int(np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))[0])


def _check_arrays(path: Path, arrays: dict[str, np.ndarray], env: gymnasium.Env) -> None:
    """Shapes against the environment, action range, ends of trajectories."""
    spaces = {"observations": env.observation_space, "actions": env.action_space}
    for key, space in spaces.items():
        if arrays[key].shape[1:] != space.shape:
            raise UserError(
                f"{path}: '{key}' has shape {arrays[key].shape}, the environment needs (R, {space.shape[0]})."
            )
    if "next_observations" in arrays and arrays["next_observations"].shape != arrays["observations"].shape:
        raise UserError(f"{path}: 'next_observations' and 'observations' differ in shape.")
    for key in {"rewards", "masks", "terminals"} & arrays.keys():
        if arrays[key].ndim != 1:
            raise UserError(f"{path}: '{key}' has shape {arrays[key].shape}, one number per row is needed.")
    largest = np.abs(arrays["actions"]).max()
    if largest > 1.0 + 1e-6:
        raise UserError(f"{path}: actions reach {largest:.4g}; they must lie in [-1, 1].")
    for key in {"masks", "terminals"} & arrays.keys():
        if not np.isin(arrays[key], (0.0, 1.0)).all():
            raise UserError(f"{path}: '{key}' must be 0 or 1 in every row.")
    if not arrays["terminals"][-1]:
        raise UserError(f"{path}: the last row is not terminal; the file seems cut off.")


def _load_ogbench(name: str, task: int, path: Path) -> Dataset:
    """Reads an OGBench file and labels it with the rewards of one task."""
    from ogbench.relabel_utils import relabel_dataset

    from common.collect import read_record

    button_states = ("button_states",) if name.split("-")[0] in ("scene", "puzzle") else ()
    arrays = _read_npz(path, ("observations", "actions", "terminals", "qpos", *button_states))
    env = make_ogbench_env(name, task)
    try:
        _check_arrays(path, arrays, env)
        # Adds 'rewards' and 'masks' from the positions that are stored beside the observations.
        relabel_dataset(env.spec.id, env, arrays)
    finally:
        env.close()
    rows = np.flatnonzero(arrays["terminals"] == 0).astype(np.int32)
    if len(rows) == 0:
        raise UserError(f"{path} holds no transition: every row is terminal.")
    digest, official = sha256(path), _official_transitions(name)
    record = read_record(path, digest)
    if record is not None:
        source = "collected"
        print(
            f"WARNING These are NOT OGBench's official data. They were collected on this machine with its procedure: "
            f"{record['episodes']:,} episodes (official: {record['official_episodes']:,}). Do not compare scores with "
            f"published ones.",
            file=sys.stderr,
        )
    elif official in (None, len(rows)):
        source = "official"
    else:
        source = "user"
        print(
            f"NOTE    {path} is not OGBench's official {name}: {len(rows):,} transitions, the official file has "
            f"{official:,}. Do not compare scores with published ones."
        )
    return Dataset(
        name=name,
        task=task,
        make_env=functools.partial(make_ogbench_env, name, task),
        source=source,
        path=str(path.absolute()),
        sha256=digest,
        observations=arrays["observations"],
        actions=_clip(arrays["actions"]),
        rewards=arrays["rewards"],
        masks=arrays["masks"],
        rows=rows,
        num_trajectories=int(arrays["terminals"].sum()),
        collection=record,
    )


def _official_transitions(name: str) -> int | None:
    """Transitions in OGBench's file (arXiv 2410.20092, appendix), None where we do not know."""
    domain, *size, kind = name.split("-")
    if domain in ("humanoidmaze", "antsoccer"):
        return None
    millions = {"explore": 5, "triple": 3, "quadruple": 5, "4x5": 3, "4x6": 5}
    return 1_000_000 * millions.get(kind, millions.get(size[0] if size else "", 1))


def _load_user_dataset(env_name: str, path: Path) -> Dataset:
    """Reads one's own npz file; the environment is any gymnasium id and serves for evaluation only."""
    try:
        env = make_user_env(env_name)
    except gymnasium.error.Error as error:
        raise UserError(f"--env {env_name}: {str(error).splitlines()[0]}") from None
    arrays = _read_npz(path, ("observations", "actions", "rewards", "masks", "terminals"), ("next_observations",))
    _check_arrays(path, arrays, env)
    env.close()
    next_observations = arrays.get("next_observations")
    # Without the next observation, the last row of a trajectory is a transition only if nothing is bootstrapped there.
    usable = np.ones(len(path_terminals := arrays["terminals"]), bool)
    if next_observations is None:
        usable = (path_terminals == 0) | (arrays["masks"] == 0)
    if not usable.any():
        raise UserError(f"{path} holds no usable transition: each trajectory is one row with mask 1 and no next state.")
    return Dataset(
        name=env_name,
        task=None,
        make_env=functools.partial(make_user_env, env_name),
        source="user",
        path=str(path.absolute()),
        sha256=sha256(path),
        observations=arrays["observations"],
        actions=_clip(arrays["actions"]),
        rewards=arrays["rewards"],
        masks=arrays["masks"],
        rows=np.flatnonzero(usable).astype(np.int32),
        num_trajectories=int(path_terminals.sum()),
        next_observations=next_observations,
    )


def _make_bandit_dataset(name: str, size: int = 10_000) -> Dataset:
    """`size` points, a quarter from each Gaussian mode of std 0.05; the same for every seed of a run."""
    rng = np.random.default_rng(0)
    centers, means, slope = BANDITS[name]
    mode = np.arange(size) % 4
    actions = np.clip(np.array(centers)[mode] + 0.05 * rng.standard_normal((size, 2)), -1.0, 1.0)
    distances = np.linalg.norm(actions - np.array(centers)[mode], axis=1)
    rewards = np.array(means)[mode] - slope * distances + 0.5 * rng.standard_normal(size)
    return Dataset(
        name=name,
        task=None,
        make_env=functools.partial(Bandit, name),
        source="builtin",
        path=None,
        sha256=None,
        observations=np.ones((size, 1), np.float32),
        actions=_clip(actions.astype(np.float32)),
        rewards=rewards.astype(np.float32),
        masks=np.zeros(size, np.float32),
        rows=np.arange(size, dtype=np.int32),
        num_trajectories=size,
    )


def _clip(actions: np.ndarray) -> np.ndarray:
    return np.clip(actions, -1.0 + 1e-5, 1.0 - 1e-5)  # as the authors do on loading


def sha256(path: Path) -> str:
    """Of a file's contents, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()
