"""The dataset on the device, and what is drawn from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import NAME, make_dataset

from common.buffers import make_buffer, sample
from common.data import load_dataset


def test_sampling_is_uniform_over_transitions_and_never_crosses_trajectories(data_dir):
    dataset = load_dataset(NAME, data_dir=str(data_dir))
    batch = sample(make_buffer(dataset.arrays), jax.random.PRNGKey(0), 60_000)
    step = np.linalg.norm(batch["next_observations"] - batch["observations"], axis=1)
    assert step.max() < 1.0  # one step moves 0.2 at most; a jump between trajectories is larger
    ends = np.flatnonzero(np.diff(dataset.rows) > 1)
    assert np.linalg.norm(np.diff(dataset.observations, axis=0)[dataset.rows[ends] + 1], axis=1).max() > 1.0
    names = np.asarray(batch["observations"])[:, 0] + 1j * np.asarray(batch["actions"])[:, 0]
    _, counts = np.unique(names, return_counts=True)
    assert len(counts) == 600
    assert abs(counts - 100).max() < 60  # six standard deviations


def test_next_observations_are_the_next_rows_unless_they_are_stored():
    arrays = make_dataset([[0.0], [1.0], [2.0]], [[0.0]] * 3, [0.0] * 3, [1.0] * 3, [0, 0, 2]).arrays
    buffer = make_buffer(arrays)
    batch = sample(buffer, jax.random.PRNGKey(0), 32)
    np.testing.assert_array_equal(batch["next_observations"], batch["observations"] + 1)
    batch = sample(make_buffer(arrays | {"next_observations": arrays["observations"] + 100}), jax.random.PRNGKey(0), 32)
    np.testing.assert_array_equal(batch["next_observations"], batch["observations"] + 100)
    assert set(np.asarray(batch["observations"])[:, 0]) == {0.0, 1.0}
    assert {x.dtype for name, x in buffer._asdict().items() if x is not None and name != "rows"} == {jnp.float32.dtype}


def test_without_rows_each_row_starts_a_transition_unless_its_next_observation_is_missing():
    columns = {name: np.zeros((5, 1)) for name in ("observations", "actions")} | {"rewards": np.zeros(5)}
    columns |= {"masks": np.array([1, 1, 1, 0, 1]), "terminals": np.array([0, 1, 0, 1, 1])}
    assert make_buffer(columns).rows.tolist() == [0, 2, 3]  # nothing is bootstrapped from row 3's next observation
    stored = columns | {"next_observations": np.zeros((5, 1))}
    assert make_buffer(stored).rows.tolist() == [0, 1, 2, 3, 4]
    for name in ("observations", "actions", "rewards", "masks", "terminals"):
        with pytest.raises(ValueError, match=f"no {name} .* in a dataset of"):
            make_buffer({key: x for key, x in columns.items() if key != name})
