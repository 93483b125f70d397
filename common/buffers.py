"""The dataset as a pytree on the device, sampled inside jit."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from common.datasets import Dataset


class ReplayBuffer(NamedTuple):
    """Transitions (s, a, r, m, s'), where m is 0 if nothing may be bootstrapped from s', else 1.

    An offline dataset is stored as its trajectories lie in the file: R rows, the next observation is the next row's,
    and `rows` lists the N rows at which a transition starts. A buffer with room for online transitions has no such
    order, so it stores `next_observations`, and each row is a transition.
    """

    observations: jax.Array  # (R, S)
    actions: jax.Array  # (R, A)
    rewards: jax.Array  # (R,)
    masks: jax.Array  # (R,)
    rows: jax.Array | None  # (N,) int32, or None: every row
    next_observations: jax.Array | None  # (R, S), or None: that of the next row
    size: jax.Array  # () int32, number of transitions that can be drawn
    position: jax.Array  # () int32, row that the next online transition goes to


def make_buffer(dataset: Dataset, capacity: int | None = None) -> ReplayBuffer:
    """Puts the dataset on the device. `capacity`, in transitions, leaves room for online ones.

    Raises ValueError if `capacity` is smaller than the dataset.
    """
    size = len(dataset.rows)
    arrays = dataset.arrays
    if capacity is not None:
        if capacity < size:
            raise ValueError(f"capacity {capacity} is smaller than the dataset of {size} transitions")
        rows = arrays.pop("rows")
        # A transition on the very last row has mask 0 (see datasets.py): any next observation will do.
        following = dataset.observations[np.minimum(rows + 1, len(dataset.observations) - 1)]
        arrays = {name: x[rows] for name, x in arrays.items()}
        arrays.setdefault("next_observations", following)
        arrays = {
            name: np.concatenate([x, np.zeros((capacity - size, *x.shape[1:]), x.dtype)]) for name, x in arrays.items()
        }
    arrays = {"rows": None, "next_observations": None} | {name: jnp.asarray(x) for name, x in arrays.items()}
    return ReplayBuffer(**arrays, size=jnp.int32(size), position=jnp.int32(size % (capacity or size)))


def sample(buffer: ReplayBuffer, key: jax.Array, batch_size: int) -> dict[str, jax.Array]:
    """`batch_size` transitions, drawn uniformly with replacement: observations and next_observations (B, S), actions
    (B, A), rewards and masks (B,)."""
    index = jax.random.randint(key, (batch_size,), 0, buffer.size)
    row = index if buffer.rows is None else buffer.rows[index]
    if buffer.next_observations is None:
        next_observations = buffer.observations[row + 1]
    else:
        next_observations = buffer.next_observations[row]
    return {
        "observations": buffer.observations[row],
        "actions": buffer.actions[row],
        "rewards": buffer.rewards[row],
        "masks": buffer.masks[row],
        "next_observations": next_observations,
    }


def add(buffer: ReplayBuffer, transition: dict[str, jax.Array]) -> ReplayBuffer:
    """The buffer with one more transition, keys as in `sample` without the batch axis. When it is full, the oldest row
    is overwritten. Needs a buffer that was made with `capacity`."""
    capacity = len(buffer.rewards)
    stored = {name: getattr(buffer, name).at[buffer.position].set(x) for name, x in transition.items()}
    return buffer._replace(
        **stored,
        size=jnp.minimum(buffer.size + 1, capacity),
        position=(buffer.position + 1) % capacity,
    )
