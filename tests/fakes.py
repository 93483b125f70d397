"""Environments for the tests of evaluation. No JAX: worker processes import this."""

import gymnasium
import numpy as np

from common.data.ogbench import make_ogbench_env


class Recorder(gymnasium.Env):
    """Ten steps; reward and position are the action, the observation counts the steps, odd episodes succeed."""

    observation_space = gymnasium.spaces.Box(-1, 100, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.t, self.odd = 0, seed % 2
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        done = self.t == 10 or (self.odd and self.t == 4)
        observation, success = np.full(1, self.t, np.float32), bool(self.odd)
        info = {"success": success, "xy": np.array([action[0], self.t])}
        return observation, float(action[0]), success and done, done, info


def make_short_maze(name: str, steps: int) -> gymnasium.Env:
    """OGBench's maze, its episodes cut after so many steps."""
    return gymnasium.wrappers.TimeLimit(make_ogbench_env(name, 1), steps)
