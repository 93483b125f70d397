"""What a dataset's arrays mean, and how they are clipped and summed up. Files that are refused: test_datasets.py."""

import hashlib

import numpy as np
import pytest
from helpers import make_dataset

from common import UserError
from common.transitions import check_arrays, checked_numbers, clip_actions, sha256


def test_actions_keep_a_distance_from_the_bounds():
    """1e-5, as FQL's authors do on loading; inside, nothing changes."""
    actions = np.array([[-1.0, 1.0], [0.5, -0.99998], [0.999995, -0.999995]], np.float32)
    bound = np.float32(1 - 1e-5)
    clipped = clip_actions(actions)
    assert clipped.dtype == np.float32
    np.testing.assert_array_equal(clipped, [[-bound, bound], [0.5, np.float32(-0.99998)], [bound, -bound]])


def test_numbers_become_float32_and_button_states_stay():
    arrays = {"observations": np.arange(3), "terminals": np.array([False, False, True]), "button_states": np.arange(3)}
    checked = checked_numbers("file", arrays)
    assert {name: x.dtype for name, x in checked.items()} == {
        "observations": np.float32, "terminals": np.float32, "button_states": np.int64
    }  # fmt: skip
    assert checked["terminals"].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": np.array(1.0)}, r"'actions' has shape \(\)"),
        ({"actions": np.zeros((2, 1))}, "'observations' has 3 rows"),
        ({"actions": np.array([[0.0], [np.inf], [np.nan]])}, "first in row 1"),
        ({"actions": np.zeros((3, 1), complex)}, "numbers are needed"),
        ({"observations": np.zeros((0, 1)), "actions": np.zeros((0, 1))}, "is empty"),
    ],
)
def test_wrong_numbers_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        checked_numbers("file", {"observations": np.zeros((3, 1)), "actions": np.zeros((3, 1))} | change)


def test_next_observations_must_have_the_shape_of_observations():
    import gymnasium

    class Env:
        observation_space = action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    arrays = {name: np.zeros((3, 1), np.float32) for name in ("observations", "actions")}
    arrays |= {"terminals": np.array([0, 0, 1.0])}
    check_arrays("file", arrays, Env)
    with pytest.raises(UserError, match="differ in shape"):
        check_arrays("file", arrays | {"next_observations": np.zeros((3, 2))}, Env)
    with pytest.raises(UserError, match=r"actions reach 1\.1"):
        check_arrays("file", arrays | {"actions": np.array([[0.0], [-1.1], [0.0]])}, Env)


def test_a_dataset_describes_itself():
    dataset = make_dataset([[0.0, 1.0]] * 4, [[0.5]] * 4, [0, 1, -2, 9], [1, 0, 1, 1], [0, 1, 0, 2])
    assert (dataset.observation_dim, dataset.action_dim) == (2, 1)
    assert dataset.describe()["transitions"] == 3
    assert set(dataset.arrays) == {"observations", "actions", "rewards", "masks", "rows"}
    summary = dataset.summary()
    assert "3 transitions" in summary
    assert "rewards -2 to 1, 33.333% of masks at 0" in summary  # of transitions, not of final states


def test_sha256_is_that_of_the_file(tmp_path):
    content = bytes(range(256)) * 1000
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
