"""What a dataset is: the arrays of its transitions, their meaning, and the checks that every file passes. No JAX.

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
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np

from common import UserError


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
    """official (downloaded from OGBench's host by this program), unverified (an OGBench file from elsewhere),
    collected, builtin, d4rl or minari (d4rl.py), or user"""
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
    """how collected data were made (common/collect)"""
    environment: str | None = None
    """what `make_env` makes, where `name` does not say it"""
    reference: tuple[float, float] | None = None
    """returns that are scores of 0 and 100, where the benchmark has such (D4RL)"""

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
            "task": self.task,
            "source": self.source,
            "path": self.path,
            "transitions": len(self.rows),
            "trajectories": self.num_trajectories,
            "observation_dim": self.observation_dim,
            "action_dim": self.action_dim,
            "sha256": self.sha256,
            "collection": self.collection,
            "environment": self.environment or self.name,
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


def checked_numbers(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a file as float32 (button_states as they are). Raises UserError unless all hold numbers that are
    finite then, as many rows each as the first."""
    first, length = next(((name, len(x) if x.ndim else 0) for name, x in arrays.items()), ("observations", 0))
    for key, x in arrays.items():
        if x.dtype.kind not in "fiub":
            raise UserError(f"{path}: '{key}' has dtype {x.dtype}, numbers are needed.")
        if x.ndim == 0 or len(x) != length:
            raise UserError(f"{path}: '{key}' has shape {x.shape}, but '{first}' has {length} rows.")
    if length == 0:
        raise UserError(f"{path} is empty.")
    with np.errstate(over="ignore"):  # to infinity, which is found below
        arrays = {key: x if key == "button_states" else x.astype(np.float32) for key, x in arrays.items()}
    for key, x in arrays.items():
        if not np.isfinite(x).all():
            bad = np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))[0]
            raise UserError(f"{path}: '{key}' is NaN, infinite or beyond float32, first in row {bad}.")
    return arrays


def check_arrays(path: Path, arrays: dict[str, np.ndarray], env: gymnasium.Env) -> None:
    """Raises UserError unless shapes fit the environment's, actions lie in [-1, 1], masks and terminals are 0 or 1, and
    the last trajectory ends."""
    spaces = {"observations": env.observation_space, "actions": env.action_space}
    for key, space in spaces.items():
        shape, needed = arrays[key].shape, space.sample().shape
        if shape[1:] != needed:
            raise UserError(f"{path}: '{key}' has shape {shape}, the environment needs (R, {needed[0]}).")
    if "next_observations" in arrays and arrays["next_observations"].shape != arrays["observations"].shape:
        raise UserError(f"{path}: 'next_observations' and 'observations' differ in shape.")
    for key in {"rewards", "masks", "terminals"} & arrays.keys():
        if arrays[key].ndim != 1:
            raise UserError(f"{path}: '{key}' has shape {arrays[key].shape}, one number per row is needed.")
    largest = np.abs(arrays["actions"]).max()
    if largest > 1.0 + 1e-6:
        own = _own_units(env)
        hint = f" They are rescaled for the environment: {own}." if own else ""
        raise UserError(f"{path}: actions reach {largest:.4g}; they must lie in [-1, 1].{hint}")
    for key in {"masks", "terminals"} & arrays.keys():
        if not np.isin(arrays[key], (0.0, 1.0)).all():
            raise UserError(f"{path}: '{key}' must be 0 or 1 in every row.")
    if not arrays["terminals"][-1]:
        raise UserError(f"{path}: the last row is not terminal: is the file cut off? If not, set terminals[-1] = 1.")


def doubts(arrays: dict[str, np.ndarray], env: gymnasium.Env) -> list[str]:
    """What passes all checks of one's own file and is a mistake more often than not."""
    found, actions, stopped = [], arrays["actions"], (arrays["masks"] == 0).mean()
    if stopped > 0.5 and not (stopped == 1 and arrays["terminals"].all()):  # a bandit's
        found.append(
            f"{stopped:.1%} of masks are 0, so that nothing is bootstrapped there. masks are 1 - terminated, terminals "
            f"are 1 where a trajectory ends; are they swapped, or is one inverted?"
        )
    space = _own_space(env)
    narrow = (space.low > -1) | (space.high < 1)
    if narrow.any() and ((actions >= space.low - 1e-6) & (actions <= space.high + 1e-6))[:, narrow].all():
        found.append(f"the actions may be in the environment's units. They should not: {_own_units(env)}.")
    return found


def _own_space(env: gymnasium.Env) -> gymnasium.spaces.Box:
    """Of actions as the environment takes them, where it was wrapped to take [-1, 1]."""
    space = env.env.action_space if isinstance(env, gymnasium.wrappers.RescaleAction) else env.action_space
    assert isinstance(space, gymnasium.spaces.Box)
    return space


def _own_units(env: gymnasium.Env) -> str:
    """How actions get from the environment's units to a dataset's; nothing where they are the same."""
    low, high = _own_space(env).low, _own_space(env).high
    if np.allclose(low, -1) and np.allclose(high, 1):
        return ""
    return f"it takes {low.min():.4g} to {high.max():.4g}, which become -1 to 1 by 2 (a - low) / (high - low) - 1"


def clip_actions(actions: np.ndarray) -> np.ndarray:
    """Within +-(1 - 1e-5), as FQL's authors do on loading, and all who build on their code."""
    return np.clip(actions, -1.0 + 1e-5, 1.0 - 1e-5)


def sha256(path: Path) -> str:
    """Of a file's contents, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()
