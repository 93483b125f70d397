"""The dataset as a pytree on the device, sampled inside jit."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from common import UserError
from common.transitions import Dataset


class ReplayBuffer(NamedTuple):
    """Transitions (s, a, r, m, s'), where m is 0 if nothing may be bootstrapped from s', else 1.

    They are stored as the trajectories lie in the file, R rows: the next observation is the next row's, and `rows`
    lists the N rows at which a transition starts.
    """

    observations: jax.Array  # (R, S)
    actions: jax.Array  # (R, A)
    rewards: jax.Array  # (R,)
    masks: jax.Array  # (R,)
    rows: jax.Array  # (N,) int32
    next_observations: jax.Array | None = None  # (R, S), or None: that of the next row


def make_buffer(dataset: Dataset, batch_size: int = 1) -> ReplayBuffer:
    """Puts the dataset on the device. Raises UserError if it is smaller than a batch."""
    if batch_size > len(dataset.rows):
        raise UserError(f"--batch-size {batch_size} is larger than the dataset ({len(dataset.rows)} transitions).")
    return ReplayBuffer(**{name: jnp.asarray(x) for name, x in dataset.arrays.items()})


def sample(buffer: ReplayBuffer, key: jax.Array, batch_size: int) -> dict[str, jax.Array]:
    """`batch_size` transitions, drawn uniformly with replacement: observations and next_observations (B, S), actions
    (B, A), rewards and masks (B,)."""
    row = buffer.rows[jax.random.randint(key, (batch_size,), 0, len(buffer.rows))]
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
