"""The dataset on the device, and what is drawn from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import NAME, make_dataset

from common import UserError
from common.buffers import make_buffer, sample
from common.datasets import load_dataset


def test_sampling_is_uniform_over_transitions_and_never_crosses_trajectories(data_dir):
    dataset = load_dataset(NAME, data_dir=str(data_dir))
    batch = sample(make_buffer(dataset), jax.random.PRNGKey(0), 60_000)
    step = np.linalg.norm(batch["next_observations"] - batch["observations"], axis=1)
    assert step.max() < 1.0  # one step moves 0.2 at most; a jump between trajectories is larger
    ends = np.flatnonzero(np.diff(dataset.rows) > 1)
    assert np.linalg.norm(np.diff(dataset.observations, axis=0)[dataset.rows[ends] + 1], axis=1).max() > 1.0
    _, counts = np.unique(
        np.asarray(batch["observations"])[:, 0] + 1j * np.asarray(batch["actions"])[:, 0], return_counts=True
    )
    assert len(counts) == 600
    assert abs(counts - 100).max() < 60  # six standard deviations


def test_a_batch_larger_than_the_dataset_is_refused():
    dataset = load_dataset("bandit")
    make_buffer(dataset, 10_000)
    with pytest.raises(UserError, match=r"--batch-size 10001 is larger than the dataset \(10000 transitions\)"):
        make_buffer(dataset, 10_001)


def test_next_observations_are_the_next_rows_unless_they_are_stored():
    dataset = make_dataset([[0.0], [1.0], [2.0]], [[0.0]] * 3, [0.0] * 3, [1.0] * 3, [0, 0, 2])
    buffer = make_buffer(dataset)
    batch = sample(buffer, jax.random.PRNGKey(0), 32)
    np.testing.assert_array_equal(batch["next_observations"], batch["observations"] + 1)
    stored = buffer._replace(next_observations=buffer.observations + 100)
    batch = sample(stored, jax.random.PRNGKey(0), 32)
    np.testing.assert_array_equal(batch["next_observations"], batch["observations"] + 100)
    assert set(np.asarray(batch["observations"])[:, 0]) == {0.0, 1.0}
    assert {x.dtype for name, x in buffer._asdict().items() if x is not None and name != "rows"} == {jnp.float32.dtype}
