"""Two bandits with their data: one constant state, a 2-D action, one step."""

import functools

import gymnasium
import numpy as np

from common.data.dataset import Dataset, build

# Centres of the four modes, their mean rewards, and how much reward a unit of distance from the centre costs.
# `bandit` is after figure 1 of DriftQL (arXiv 2606.00350), whose constants are not published, so these are ours;
# `bandit-corners` is the toy of Diffusion-QL (arXiv 2208.06193).
BANDITS = {
    "bandit": ([[0.0, 0.8], [-0.8, 0.0], [0.8, 0.0], [0.0, -0.8]], [2.0, 1.0, 5.0, 5.0], 10.0),
    "bandit-corners": ([[-0.8, 0.8], [-0.8, -0.8], [0.8, 0.8], [0.8, -0.8]], [3.0, 0.0, 1.5, 5.0], 0.0),
}


class Bandit(gymnasium.Env):
    """One constant state, a 2-D action, one step. The reward is that of the nearest mode, without its noise."""

    observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, name: str, render_mode: str | None = None):
        centers, means, self.slope = BANDITS[name]
        self.centers, self.means = np.array(centers), np.array(means)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: np.ndarray):
        distances = np.linalg.norm(self.centers - action, axis=1)
        nearest = distances.argmin()
        reward = self.means[nearest] - self.slope * distances[nearest]
        best = distances[self.means == self.means.max()] <= 0.2
        info = {"success": best.any(), "support": distances[nearest] <= 0.2, "xy": np.array(action)}
        info |= {f"mode_{i}": found for i, found in enumerate(best)}
        return np.ones(1, np.float32), float(reward), True, False, info


def load_bandit(name: str, data: str) -> Dataset:
    """Draws 10,000 points, a quarter from each Gaussian mode of std 0.05; the same for every seed of a run."""
    make_env = functools.partial(Bandit, name)
    if data == "none":
        return build(name, make_env)
    centers, means, slope = (np.array(x) for x in BANDITS[name])
    rng, size = np.random.default_rng(0), 10_000
    mode = np.arange(size) % 4
    actions = np.clip(centers[mode] + 0.05 * rng.standard_normal((size, 2)), -1 + 1e-5, 1 - 1e-5)
    distances = np.linalg.norm(actions - centers[mode], axis=1)
    rewards = means[mode] - slope * distances + 0.5 * rng.standard_normal(size)
    ones, rows = np.ones(size, np.float32), np.arange(size, dtype=np.int32)
    # In the order of Dataset's fields: masks are 0, terminals are 1.
    arrays = (ones[:, None], actions.astype(np.float32), rewards.astype(np.float32), 0 * ones, ones, rows)
    return Dataset(name, make_env, *arrays, num_trajectories=size, source="builtin")
