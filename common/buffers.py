"""The dataset on the device, and training as one loop over it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class ReplayBuffer(NamedTuple):
    """Transitions (s, a, r, m, s') in R rows, as the trajectories lie in the file. m is 0 where nothing may be
    bootstrapped from s', else 1. `rows` lists the N rows at which a transition starts."""

    observations: jax.Array  # (R, S)
    actions: jax.Array  # (R, A)
    rewards: jax.Array  # (R,)
    masks: jax.Array  # (R,)
    rows: jax.Array  # (N,) int32
    next_observations: jax.Array | None = None  # (R, S); None: the next row's observation


def make_buffer(arrays: Mapping[str, Any]) -> ReplayBuffer:
    """Puts a dataset on the device: observations (R, S), actions (R, A) in [-1, 1], rewards and masks (R,), and either
    next_observations (R, S) or terminals (R,), 1 on the last row of a trajectory. Raises ValueError if one is missing.

    Without `rows`, each row starts a transition whose next observation is there, or not needed.
    """
    following = "next_observations" if "next_observations" in arrays else "terminals"
    if missing := [x for x in ("observations", "actions", "rewards", "masks", following) if x not in arrays]:
        raise ValueError(f"no {', '.join(missing)} (or next_observations) in a dataset of {', '.join(arrays)}")
    ends = np.asarray(arrays["masks"]) * (0 if following == "next_observations" else np.asarray(arrays["terminals"]))
    given = {name: x for name, x in arrays.items() if name in ReplayBuffer._fields}
    given.setdefault("rows", np.flatnonzero(ends == 0))
    return ReplayBuffer(**{name: jnp.asarray(x, "int32" if name == "rows" else "float32") for name, x in given.items()})


def sample(buffer: ReplayBuffer, key: jax.Array, batch_size: int) -> dict[str, jax.Array]:
    """B transitions, drawn uniformly with replacement; their arrays are named and shaped as in the buffer."""
    row = buffer.rows[jax.random.randint(key, (batch_size,), 0, len(buffer.rows))]
    following = buffer.observations[row + 1] if buffer.next_observations is None else buffer.next_observations[row]
    batch = {name: getattr(buffer, name)[row] for name in ("observations", "actions", "rewards", "masks")}
    return batch | {"next_observations": following}


def repeat(step: Callable, state: Any, length: int) -> tuple[Any, dict[str, jax.Array]]:
    """Runs step(state) -> (state, metrics) `length` times in one loop. Returns the state and the mean metrics."""
    step = jax.jit(step)  # so that its two uses below trace it once

    def step_and_add(carry, _):
        state, metrics = step(carry[0])
        return (state, carry[1] + jnp.stack(jax.tree.leaves(metrics))), None

    # Metrics are summed on the way: writing a row for each update would keep a GPU from running it as one CUDA graph.
    leaves, structure = jax.tree.flatten(jax.eval_shape(step, state)[1])
    (state, sums), _ = jax.lax.scan(step_and_add, (state, jnp.zeros(len(leaves))), length=length)
    return state, jax.tree.unflatten(structure, sums / length)
