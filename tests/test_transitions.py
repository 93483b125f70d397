"""What a dataset's arrays mean, and how they are clipped and summed up. Files that are refused: test_datasets.py."""

import hashlib
import re

import numpy as np
import pytest
from helpers import make_dataset

from common import UserError
from common.environments import make_user_env
from common.transitions import check_arrays, checked_numbers, clip_actions, doubts, sha256


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


def test_actions_in_the_environment_s_units_are_known_by_its_bounds():
    """Pendulum's -2 to 2 are refused; Humanoid's -0.4 to 0.4 may be right."""
    rng = np.random.default_rng(0)
    for name, dims, bound in (("Pendulum-v1", (3, 1), 2), ("Humanoid-v5", (348, 17), 0.4), ("Hopper-v5", (11, 3), 1)):
        env = make_user_env(name)
        zeros = {key: np.zeros(50) for key in ("rewards", "terminals")} | {"masks": np.ones(50)}
        zeros["terminals"][-1] = 1
        arrays = zeros | {"observations": np.zeros((50, dims[0])), "actions": rng.uniform(-1, 1, (50, dims[1]))}
        check_arrays("file", arrays, env)
        assert not doubts(arrays, env)
        arrays["actions"] *= bound
        rule = f"it takes -{bound} to {bound}, which become -1 to 1 by 2 (a - low) / (high - low) - 1."
        if bound > 1:
            message = f"in [-1, 1]. They are rescaled for the environment: {rule}"
            with pytest.raises(UserError, match=re.escape(message)):
                check_arrays("file", arrays, env)
        else:
            check_arrays("file", arrays, env)
            doubt = f"the actions may be in the environment's units. They should not: {rule}"
            assert doubts(arrays, env) == ([doubt] if bound < 1 else [])


def test_masks_that_are_swapped_or_inverted_are_doubted():
    env = make_user_env("Hopper-v5")
    ends, solved = np.arange(40) % 10 == 9, np.arange(40) == 39
    arrays = {"actions": np.zeros((40, 3)), "masks": 1.0 - solved, "terminals": 1.0 * ends}
    assert not doubts(arrays, env)
    assert not doubts(arrays | {"masks": np.zeros(40), "terminals": np.ones(40)}, env)  # a bandit
    for masks, terminals, share in ((ends, 1 - solved, "90.0%"), (solved, ends, "97.5%")):
        (doubt,) = doubts(arrays | {"masks": 1.0 * masks, "terminals": 1.0 * terminals}, env)
        assert doubt.startswith(f"{share} of masks are 0, so that nothing is bootstrapped there.")


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
