"""Environments for the tests of evaluation. No JAX: worker processes import this."""

import gymnasium
import numpy as np

from common.data.ogbench import make_ogbench_env


class Recorder(gymnasium.Env):
    """Ten steps; the reward is the action, the observation counts the steps, success comes in odd episodes."""

    observation_space = gymnasium.spaces.Box(-1, 100, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.t, self.odd = 0, seed % 2
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        done = self.t == 10 or (self.odd and self.t == 4)
        return (
            np.full(1, self.t, np.float32),
            float(action[0]),
            bool(self.odd and done),
            done,
            {"success": bool(self.odd)},
        )


class Listener(Recorder):
    """Reports each action that it gets as its position, so that the evaluation hands it on."""

    def step(self, action):
        *rest, info = super().step(action)
        return *rest, info | {"xy": np.array([action[0], self.t])}


class Failing(Recorder):
    def step(self, action):
        raise FloatingPointError("the simulation blew up")


def make_short_maze(name: str, steps: int) -> gymnasium.Env:
    """OGBench's maze, its episodes cut after so many steps."""
    return gymnasium.wrappers.TimeLimit(make_ogbench_env(name, 1), steps)
