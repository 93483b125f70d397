"""Episodes of the policies of all members, in parallel: success, return and length of each.

The environments live in worker processes. A fixed number of lanes, each playing its episodes one after the other, moves
in lockstep: each tick is one batched call of the policy for all lanes. An episode depends on (seed, step of training,
episode) alone and the lanes do not depend on the number of workers, so neither do the results.
"""

import math
import multiprocessing
from collections.abc import Callable, Generator
from multiprocessing.connection import Connection
from typing import Any

import gymnasium
import numpy as np

from common import UserError
from common.system import progress_bar, usable_cores
from common.workers import Workers

MAX_LANES = 32  # environments alive at once, but one per member at least; an OGBench cube scene takes 200 MB
MODES = ("mode_0", "mode_1")  # whether a bandit's action is near its first best mode, and near its second
INFO = ("success", "support", *MODES)  # what an environment may report in the last step of an episode
# What an evaluation can have. rarest_mode: the share of the best mode that is met least; normalized: the score of D4RL
FIGURES = ("success", "support", "rarest_mode", "return", "length", "normalized")


class Evaluator(Workers):
    """Plays episodes: `evaluate(state, step)`. A context manager that ends its workers.

    make_env() makes one environment; act(state, observations (B, S), key) -> actions (B, A) is the policy of one
    member; seeds: one per member; episodes: per member; workers: processes, None is one per core; stopping: a function
    that ends an evaluation when it returns true.
    """

    def __init__(
        self,
        make_env: Callable[..., gymnasium.Env],
        act: Callable,
        seeds: list[int],
        episodes: int,
        workers: int | None = None,
        progress: bool = True,
        stopping: Callable[[], bool] = lambda: False,
    ):
        import jax  # not at the top, because workers import this module

        def act_one(state, observation, seed, step, episode, tick):
            key = jax.random.PRNGKey(seed)
            # The first number keeps these keys apart from those of training, which are split from the same seed.
            for number in (0x6576616C, step, episode, tick):
                key = jax.random.fold_in(key, number)
            return act(state, observation[None], key)[0]

        act_lanes = jax.vmap(act_one, in_axes=(None, 0, None, None, 0, 0))
        self.act = jax.jit(jax.vmap(act_lanes, in_axes=(0, 0, 0, None, 0, 0)))
        self.seeds, self.episodes, self.progress, self.stopping = seeds, episodes, progress, stopping
        rounds = math.ceil(episodes / max(1, MAX_LANES // len(seeds)))
        self.lanes = math.ceil(episodes / rounds)  # per member
        total = self.lanes * len(seeds)
        self.parts = np.array_split(np.arange(total), min(workers or usable_cores(), total))  # lanes of each worker
        super().__init__(_work, [(make_env, len(part)) for part in self.parts])

    def __call__(self, state: Any, step: int) -> dict[str, Any] | None:
        """Results at this step of training: arrays (members, episodes) named return, length, and success and support
        where the environment reports them; `paths`, the xy positions in each episode of the first member.

        state: of all members. Returns None if the evaluation is stopped. Raises UserError if an environment fails.
        """
        shape, seeds = (len(self.seeds), self.lanes), np.array(self.seeds)
        # The lanes of a member take its episodes in turn.
        member, episode = np.divmod(np.arange(len(seeds) * self.lanes), self.lanes)
        environment_seeds = [
            [int(np.random.SeedSequence([seed, step, j]).generate_state(1)[0]) for j in range(self.episodes)]
            for seed in self.seeds
        ]
        queues = [environment_seeds[i][first :: self.lanes] for i, first in zip(member, episode)]
        messages: list[tuple] = [("start", [queues[lane] for lane in part]) for part in self.parts]
        tick = np.full(len(queues), -1, np.int32)  # in the episode: 0 where `start` is answered
        records: list[list[dict]] = [[{}] * self.episodes for _ in self.seeds]
        with progress_bar("evaluate", seeds.size * self.episodes, "episode", leave=False, shown=self.progress) as bar:
            while True:
                if (answers := self._ask(messages)) is None:
                    return None
                tick += 1
                for lane, record in enumerate(record for _, ended in answers for record in ended):
                    if record:
                        records[member[lane]][episode[lane]] = record
                        episode[lane] += self.lanes
                        tick[lane] = 0
                        bar.update()
                if (episode >= self.episodes).all():
                    break
                observations = np.concatenate([x for x, _ in answers]).reshape(*shape, -1)
                now = np.minimum(episode, self.episodes - 1).reshape(shape)  # any, where a lane has played all
                actions = self.act(state, observations, seeds, step, now, tick.reshape(shape))
                actions = np.asarray(actions).reshape(len(queues), -1)
                messages = [("step", actions[part]) for part in self.parts]
        names = [name for name in (*INFO, *FIGURES) if any(name in record for row in records for record in row)]
        # An environment may report a success only where there is one.
        results = {name: np.array([[record.get(name, 0.0) for record in row] for row in records]) for name in names}
        return results | {"paths": [record["path"] for record in records[0]]}

    def _ask(self, messages: list[tuple]) -> list | None:
        """Sends one message to each worker, and returns each one's answer; None if asked to stop meanwhile."""
        for pipe, message in zip(self.pipes, messages):
            self.send(pipe, message)
        answers = []
        for pipe in self.pipes:
            while not pipe.poll(0.5):  # an environment may hang
                if self.stopping():
                    return None
            answers.append(self.receive(pipe))
        return None if self.stopping() else answers


def _work(pipe: Connection, make_env: Callable[..., gymnasium.Env], num_lanes: int) -> None:
    """Answers until the pipe ends: start (the seeds of each lane's episodes), step (an action for each lane)."""
    lanes = [Lane(make_env()) for _ in range(num_lanes)]
    multiprocessing.current_process().name = lanes[0].name  # for the message if it fails
    while True:
        command, message = pipe.recv()
        if command == "start":
            playing = [lane.play(seeds) for lane, seeds in zip(lanes, message)]
            message = [None] * num_lanes
        observations, ended = zip(*(episodes.send(action) for episodes, action in zip(playing, message)))
        pipe.send((np.stack(observations), ended))


class Lane:
    """One environment that plays a list of seeded episodes, one after the other. Raises UserError for what it returns
    that is not a finite number, or of another shape than its spaces say."""

    def __init__(self, env: gymnasium.Env):
        self.env = env
        self.name = f"the environment {env.spec.id if env.spec else type(env.unwrapped).__name__}"
        self.shape = env.observation_space.sample().shape

    def play(self, seeds: list[int]) -> Generator[tuple[np.ndarray, dict | None], np.ndarray, None]:
        """Yields observation after observation, is sent the action for each, and never ends: zeros follow the last
        episode. With the first observation after an episode comes the record of that episode, else None."""
        record: dict[str, Any] | None = None
        for seed in seeds:
            # OGBench also draws from NumPy's global generator, so each episode brings its own.
            global_random = np.random.MT19937(seed)
            np.random.set_bit_generator(global_random)  # type: ignore[attr-defined]
            self.env.action_space.seed(seed)
            observation, ended = self.env.reset(seed=seed)[0], False
            rewards: list[float] = []
            path: list[np.ndarray] = []
            while not ended:
                action = yield self._checked("observation", observation, self.shape, np.float32), record
                record = None
                np.random.set_bit_generator(global_random)  # type: ignore[attr-defined]
                observation, reward, terminated, truncated, info = self.env.step(action)
                rewards.append(float(self._checked("reward", reward)))
                if "xy" in info:
                    path.append(info["xy"][:2])
                ended = terminated or truncated
            record = {name: float(self._checked(name, info[name])) for name in INFO if name in info}
            record |= {"return": sum(rewards), "length": len(rewards), "path": np.array(path, np.float32)}
        while True:
            yield np.zeros(self.shape, np.float32), record
            record = None

    def _checked(self, what: str, value: Any, shape: tuple = (), kind: type = float) -> np.ndarray:
        try:
            array: np.ndarray = np.asarray(value, kind)
            array = array if shape else array.reshape(())  # an array of one number is a number
        except (TypeError, ValueError):
            array = np.array(np.nan)
        if array.shape != shape or not np.isfinite(array).all():
            numbers = f"finite numbers of shape {shape}" if shape else "a finite number"
            raise UserError(f"{self.name} gave the {what} {value!r:.80}, which is not {numbers}.")
        return array
