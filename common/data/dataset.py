"""What a dataset is, and the checks that every file passes. No module of this package imports JAX."""

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from common import UserError

# MuJoCo 3.5 adds up the contact margins of two geoms where older versions took the larger. The environments here halve
# them, because the benchmarks' data and the papers' scores are older.
MUJOCO = importlib.metadata.version("mujoco")  # without the import, which takes as long as all else here
MARGINS_ADD_UP = tuple(int(part) for part in MUJOCO.split(".")[:2]) >= (3, 5)
PHYSICS = {"mujoco": MUJOCO, "geom_margin": "halved" if MARGINS_ADD_UP else "as in the model"}


@dataclass
class Dataset:
    """Transitions on the host, as trajectories of consecutive rows, and how to make their environment.

    `masks` and `terminals` differ. OGBench's trajectories go on after a success and end at a time limit: a row can have
    mask 0 without being terminal, and a terminal row has mask 1 where the task was not solved. OGBench's rewards and
    masks belong to the state before the action (s, not s').

    In an OGBench file the terminal row holds a final state that no action follows. In your own file each row is a
    transition. Where a trajectory ends with mask 1 and the file has no `next_observations`, the last row is left out,
    because its next state is needed and not there.
    """

    name: str  # environment, as in `--env`, without the task
    make_env: Callable[..., gymnasium.Env]  # takes gymnasium's render_mode; can be sent to another process
    # The arrays are float32, but for `rows`.
    observations: np.ndarray  # (R, S), the state before the action
    actions: np.ndarray  # (R, A), within +-(1 - 1e-5)
    rewards: np.ndarray  # (R,), in OGBench's files computed for the task: -1 per unsolved part, 0 when solved
    masks: np.ndarray  # (R,), 0 stops the bootstrap, because the task was solved or failed; else 1
    terminals: np.ndarray  # (R,), 1 on the last row of a trajectory, whatever the reason (a time limit too)
    rows: np.ndarray  # (N,) int32, rows at which a transition starts
    num_trajectories: int
    # official (downloaded from OGBench's host by this program), unverified (an OGBench file from elsewhere), collected,
    # builtin, d4rl, user, or none (only the environment was asked for)
    source: str = "none"
    path: str | None = None
    sha256: str | None = None
    task: int | None = None  # OGBench task, 1 to 5; None elsewhere
    next_observations: np.ndarray | None = None  # (R, S), optional in your own file; else the next row's observation
    collection: dict | None = None  # how collected data were made
    environment: str | None = None  # what `make_env` makes, where `name` does not say it
    treatment: tuple[float, float] = (0.0, 1.0)  # (r - first) / second makes the data's rewards of the environment's
    reference: tuple[float, float] | None = None  # returns that are scores of 0 and 100, where there are such (D4RL)

    def __post_init__(self):
        self.observation_dim, self.action_dim = self.observations.shape[1], self.actions.shape[1]

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What goes to the device."""
        return {name: x for name, x in vars(self).items() if isinstance(x, np.ndarray)}

    def describe(self) -> dict[str, Any]:
        """What `config.json` and `result.json` say about the data."""
        names = ("name", "task", "source", "path", "observation_dim", "action_dim", "sha256", "collection")
        return {name: getattr(self, name) for name in names} | {
            "transitions": len(self.rows),
            "trajectories": self.num_trajectories,
            "environment": self.environment or self.name,
        }

    def summary(self) -> str:
        """Two lines for the eye, printed when a run starts."""
        rewards, masks = self.rewards[self.rows], self.masks[self.rows]
        return (
            f"data    {self.name}{f' task {self.task}' if self.task else ''}: {len(self.rows):,} transitions, "
            f"{self.num_trajectories:,} trajectories, {self.source}{f' ({self.path})' if self.path else ''}\n"
            f"        observations {self.observation_dim}, actions {self.action_dim}, rewards {rewards.min():.3g} to "
            f"{rewards.max():.3g}, {(masks == 0).mean():.3%} of masks at 0"
        )


def build(
    name: str,
    make_env: Callable[..., gymnasium.Env],
    arrays: dict[str, np.ndarray] | None = None,
    path: Path | None = None,
    **fields: Any,
) -> Dataset:
    """Makes a dataset of the float32 arrays of a file, which it checks against the environment.

    Without `rows`, each row that is not terminal starts a transition. arrays: None is no rows at all, for a caller who
    needs the environment and its dimensions alone. Raises UserError if the arrays do not fit the environment. Actions
    are clipped to +-(1 - 1e-5), as FQL's authors do on loading, and all who build on their code.
    """
    env = make_env()
    sizes = {"observations": len(env.observation_space.sample()), "actions": len(env.action_space.sample())}
    env.close()
    if arrays is None:
        fields |= {key: np.zeros((0, size), np.float32) for key, size in sizes.items()}
        fields |= {key: np.zeros(0, np.float32) for key in ("rewards", "masks", "terminals")}
        return Dataset(name, make_env, rows=np.zeros(0, np.int32), num_trajectories=0, **fields)
    for key, size in (sizes | {"next_observations": sizes["observations"]}).items():
        if key in arrays and arrays[key].shape[1:] != (size,):
            raise UserError(f"{path}: '{key}' has shape {arrays[key].shape}, the environment needs (R, {size}).")
    for key in ("masks", "terminals"):
        if not np.isin(arrays[key], (0, 1)).all():
            raise UserError(f"{path}: '{key}' must be 0 or 1 in every row.")
    if (largest := np.abs(arrays["actions"]).max()) > 1.0 + 1e-6:
        bounds = "which stand for the environment's bounds: 2 (a - low) / (high - low) - 1"
        raise UserError(f"{path}: actions reach {largest:.4g}; they must lie in [-1, 1], {bounds}.")
    terminals = arrays["terminals"]
    if not terminals[-1]:
        raise UserError(f"{path}: the last row is not terminal. If the file is not cut off, set terminals[-1] = 1.")
    rows = arrays.get("rows", np.flatnonzero(terminals == 0)).astype(np.int32)
    if not len(rows):
        raise UserError(f"{path} holds no transition: every row is terminal, and its next observation is not known.")
    fields |= arrays | {"rows": rows, "actions": np.clip(arrays["actions"], -1.0 + 1e-5, 1.0 - 1e-5)}
    fields["num_trajectories"] = len(np.unique((np.cumsum(terminals, dtype=int) - terminals)[rows]))
    return Dataset(name, make_env, path=str(path.absolute()) if path else None, **fields)
