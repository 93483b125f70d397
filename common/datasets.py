"""From an environment's name, or a file, to a `Dataset`: find or fetch the file, read it, say where it is from. What
the arrays mean stands in transitions.py. No JAX."""

import contextlib
import functools
import http.client
import json
import os
import shutil
import socket
import sys
import time
import urllib.error
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np

from common import UserError, d4rl
from common.collect import CACHE_DIR, collect, read_record
from common.collect.procedures import procedure
from common.environments import BANDITS, PHYSICS, Bandit, make_ogbench_env, make_user_env, quiet, resolve_name
from common.files import alone, expanded
from common.transitions import Dataset, check_arrays, checked_numbers, clip_actions, doubts, sha256


def load_dataset(
    env: str,
    task: int | None = None,
    data: str = "auto",
    data_dir: str | None = None,
    dataset: str | None = None,
    collect_episodes: int | None = None,
    rewards: str = "usual",
) -> Dataset:
    """Transitions and evaluation environment for `env`.

    env: short OGBench name (antmaze-large-navigate), full OGBench id, a D4RL name (hopper-medium, antmaze-umaze-v0),
        `bandit`, `bandit-corners`, or, with `dataset`, any gymnasium id.
    task: OGBench task 1 to 5; None is the benchmark's default.
    data: `cache` reads `data_dir` only, `download` asks OGBench's host only, `collect` takes what was collected on this
        machine or collects it, `auto` tries them in this order.
    data_dir: folder of OGBench files; None is OGBench's own cache. Collected files are in its subfolder `collected`.
    dataset: one's own npz file; one without rewards, in OGBench's format, is labelled with the task's (transitions.py).
    collect_episodes: training episodes to collect; None is OGBench's number.
    rewards: how D4RL's are treated (d4rl.treat_rewards).

    D4RL's names have their own meaning of `data`, `data_dir` and `dataset`: see d4rl.load.
    Raises UserError for anything that the user can mend: a name, a missing or damaged file, no network.
    """
    d4rl_task = d4rl.resolve(env, suggest=dataset is None or not (env in gymnasium.registry or ":" in env))
    if d4rl_task:
        if task is not None:
            raise UserError("--task belongs to OGBench datasets; D4RL's have one task each.")
        return d4rl.load(*d4rl_task, data, data_dir, dataset, rewards)
    if rewards != "usual":
        raise UserError(f"--rewards {rewards} belongs to D4RL's datasets.")
    if dataset is not None:
        path = expanded(dataset)
        if not path.exists():
            raise UserError(f"--dataset {path} does not exist.")
        if _is_ogbench_name(env) and _in_ogbench_format(path):
            return _load_ogbench(*resolve_name(env, task), path)
        return _load_user_dataset(env, task, path)
    if env in BANDITS:
        if task is not None:
            raise UserError(f"--env {env} has no tasks; leave --task out.")
        return _make_bandit_dataset(env)
    name, task = resolve_name(env, task)
    folder = expanded(data_dir or CACHE_DIR)
    return _load_ogbench(name, task, _find_file(name, folder, data, data_dir is not None, collect_episodes))


def _is_ogbench_name(env: str) -> bool:
    with contextlib.suppress(UserError):
        return bool(resolve_name(env))
    return False


def _in_ogbench_format(path: Path) -> bool:
    """Whether rewards have to be computed from the positions in the file."""
    with contextlib.suppress(OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile), np.load(path) as file:
        return "qpos" in file and "rewards" not in file
    return False


# ------------------------------------------------------------------------------------------------------- finding a file


def _find_file(name: str, folder: Path, data: str, given: bool, episodes: int | None) -> Path:
    """Path of the npz file of `name`, downloaded or collected if need be."""
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
    if data == "auto" and folder.exists() and not os.access(folder, os.W_OK):
        return collect(name, folder / "collected", episodes)  # which is there, or says that it cannot be written
    try:
        return _download(name, folder)
    except Unreachable as error:
        reason = f"{path} does not exist and OGBench's download host cannot be reached ({error})"
    try:
        procedure(name)
    except UserError as error:
        raise UserError(f"{reason}. {error}") from None
    if data == "download":
        raise UserError(
            f"{reason}. --data collect makes the data on this machine; or copy {path.name} from a machine with a "
            f"network and name its folder with --data-dir."
        )
    print(f"WARNING {reason}: falling back to data collected on this machine.", file=sys.stderr)
    return collect(name, folder / "collected", episodes)


class Unreachable(Exception):
    """OGBench's host does not answer, and why."""


def _download(name: str, folder: Path) -> Path:
    """Fetches train and validation file through ogbench, one process at a time. They arrive in a folder of their own;
    the training file is moved last, after the record that makes it an official one: where it is, all is well."""
    with quiet():
        import ogbench.utils  # half a second that other data do not need

    path = folder / f"{name}-v0.npz"
    arriving = folder / f".{path.stem}-download"
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # a host that drops packets would hang for minutes otherwise
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder / f".{path.stem}.lock", f"downloading {path.name}"):
            if path.exists():
                return path
            try:
                ogbench.download_datasets([path.stem], str(arriving))
                record = {
                    "url": f"{ogbench.utils.DATASET_URL}/{path.name}",
                    "sha256": sha256(arriving / path.name),
                    "downloaded": time.strftime("%Y-%m-%d"),
                }
                _download_record(arriving / path.name).write_text(json.dumps(record, indent=2) + "\n")
                for file in sorted(arriving.iterdir(), key=lambda file: file.name == path.name):
                    if file.suffix == ".npz":
                        zipfile.ZipFile(file).close()  # its table of contents is at the end
                    os.replace(file, folder / file.name)
            finally:
                shutil.rmtree(arriving, ignore_errors=True)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise Unreachable(getattr(error, "reason", error)) from None
    except zipfile.BadZipFile:
        raise UserError(f"{path.name} did not arrive whole; the same command downloads it again.") from None
    except OSError as error:
        raise UserError(f"cannot write the dataset to {folder}: {error.strerror or error}.") from None
    finally:
        socket.setdefaulttimeout(timeout)
    return path


def _download_record(path: Path) -> Path:
    return path.with_name(f"{path.stem}-download.json")


def _was_downloaded(path: Path, digest: str) -> bool:
    """Whether this program fetched this very file from OGBench's host."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return json.loads(_download_record(path).read_text())["sha256"] == digest
    return False


# ------------------------------------------------------------------------------------------------------- reading a file


def _read_npz(path: Path, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """The named arrays of an npz file, checked one by one (transitions.py). Objects are never unpickled."""
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise UserError(f"{path} is a single array, not an npz file with {', '.join(required)}.")
        with file:
            missing = [key for key in required if key not in file]
            if missing:
                raise UserError(f"{path} has no '{missing[0]}'; it holds {', '.join(file.files) or 'nothing'}.")
            unpacked = sum(member.file_size for member in zipfile.ZipFile(path).infolist())
            if unpacked > _memory():
                raise UserError(
                    f"{path} unpacks to {unpacked / 1e9:,.1f} GB; this machine has {_memory() / 1e9:,.1f} GB of memory."
                )
            arrays = {key: file[key] for key in (*required, *optional) if key in file}
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except MemoryError:
        raise UserError(f"{path} promises arrays that do not fit into memory; is it damaged?") from None
    except (zipfile.BadZipFile, zlib.error, EOFError):
        raise UserError(f"{path} is truncated or damaged; delete it and get it again.") from None
    except ValueError as error:
        if path.suffix in (".hdf5", ".h5"):
            raise UserError(f"{path}: HDF5 is read for D4RL's names alone (docs/d4rl.md); write an npz file.") from None
        if "allow_pickle" in str(error):
            raise UserError(
                f"{path} holds pickled objects or is not an npz file; such files are never loaded."
            ) from None
        raise UserError(f"{path} is truncated or damaged ({error}); delete it and get it again.") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from None
    return checked_numbers(path, arrays)


def _memory() -> float:
    """Bytes of this machine's memory; without limit where the system does not say."""
    known = "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {})
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if known else float("inf")


def _load_ogbench(name: str, task: int, path: Path) -> Dataset:
    """Reads an OGBench file and labels it with the rewards of one task."""
    # Imports the environments, which bandits and one's own data do not need.
    from ogbench.relabel_utils import relabel_dataset

    button_states = ("button_states",) if name.split("-")[0] in ("scene", "puzzle") else ()
    arrays = _read_npz(path, ("observations", "actions", "terminals", "qpos", *button_states))
    env = make_ogbench_env(name, task)
    try:
        check_arrays(path, arrays, env)
        # Adds 'rewards' and 'masks' from the positions that are stored beside the observations.
        relabel_dataset(env.spec.id, env, arrays)  # type: ignore[union-attr]
    finally:
        env.close()
    rows = np.flatnonzero(arrays["terminals"] == 0).astype(np.int32)
    if len(rows) == 0:
        raise UserError(f"{path} holds no transition: every row is terminal.")
    digest = sha256(path)
    record = read_record(path, digest)
    if record is not None:
        source = "collected"
        print(
            f"WARNING These are NOT OGBench's official data. They were collected with its procedure: "
            f"{record['episodes']:,} episodes (official: {record['official_episodes']:,}). Do not compare scores with "
            f"published ones.",
            file=sys.stderr,
        )
        if record.get("physics") != PHYSICS:
            print("NOTE    They were collected with another MuJoCo, or other contact margins, than run here.")
    elif _was_downloaded(path, digest):
        source = "official"
    else:
        source = "unverified"
        print(
            f"NOTE    {path} was not downloaded by this program, so nothing says that it is OGBench's official file. "
            f"Compare its sha256 ({digest[:16]}...) and its {len(rows):,} transitions with a copy from OGBench's host "
            f"(--data download into an empty --data-dir) before you compare scores with published ones."
        )
    return Dataset(
        name=name,
        task=task,
        make_env=functools.partial(make_ogbench_env, name, task),
        source=source,
        path=str(path.absolute()),
        sha256=digest,
        observations=arrays["observations"],
        actions=clip_actions(arrays["actions"]),
        rewards=arrays["rewards"],
        masks=arrays["masks"],
        rows=rows,
        num_trajectories=int(arrays["terminals"].sum()),
        collection=record,
    )


def _load_user_dataset(env_name: str, task: int | None, path: Path) -> Dataset:
    """Reads one's own npz file; the environment, an OGBench task or any gymnasium id, serves for evaluation only."""
    make_env: Callable = functools.partial(make_user_env, env_name)
    if _is_ogbench_name(env_name):
        env_name, task = resolve_name(env_name, task)
        make_env = functools.partial(make_ogbench_env, env_name, task)
    elif task is not None:
        raise UserError(f"--task belongs to OGBench environments; {env_name} has no tasks.")
    elif env_name in BANDITS:
        raise UserError(f"--env {env_name} has data of its own; leave --dataset out, or name your data's environment.")
    env = make_env()
    arrays = _read_npz(path, ("observations", "actions", "rewards", "masks", "terminals"), ("next_observations",))
    check_arrays(path, arrays, env)
    for doubt in doubts(arrays, env):
        print(f"NOTE    {path}: {doubt}")
    env.close()
    # Without the next observation, the last row of a trajectory is a transition only if nothing is bootstrapped there.
    usable = np.ones(len(arrays["terminals"]), bool)
    if "next_observations" not in arrays:
        usable = (arrays["terminals"] == 0) | (arrays["masks"] == 0)
    if not usable.any():
        raise UserError(f"{path} holds no usable transition: each trajectory is one row with mask 1 and no next state.")
    return Dataset(
        name=env_name,
        task=task,
        make_env=make_env,
        source="user",
        path=str(path.absolute()),
        sha256=sha256(path),
        observations=arrays["observations"],
        actions=clip_actions(arrays["actions"]),
        rewards=arrays["rewards"],
        masks=arrays["masks"],
        rows=np.flatnonzero(usable).astype(np.int32),
        num_trajectories=int(arrays["terminals"].sum()),
        next_observations=arrays.get("next_observations"),
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
        actions=clip_actions(actions.astype(np.float32)),
        rewards=rewards.astype(np.float32),
        masks=np.zeros(size, np.float32),
        rows=np.arange(size, dtype=np.int32),
        num_trajectories=size,
    )
