"""Episodes of the policies of all members, in parallel: success, return and length of each.

The environments live in worker processes. A fixed number of lanes, each playing its episodes one after the other, moves
in lockstep: each tick is one batched call of the policy for all lanes. An episode depends on (seed, step of training,
episode) alone and the lanes do not depend on the number of workers, so neither do the results. The workers import this
module: JAX is imported where the policy is called.
"""

import math
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import gymnasium
import numpy as np

from common import UserError
from common.system import progress_bar, usable_cores
from common.workers import Workers, failure

MAX_LANES = 32  # environments alive at once, but one per member at least; an OGBench cube scene takes 200 MB
INFO = ("success", "support")  # what an environment may report in the last step of an episode
FIGURES = (*INFO, "return", "length", "normalized")  # what an evaluation can have; the last is D4RL's score


class Evaluator:
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

        self.seeds, self.episodes, self.progress, self.stopping = seeds, episodes, progress, stopping
        rounds = math.ceil(episodes / max(1, MAX_LANES // len(seeds)))
        self.lanes = math.ceil(episodes / rounds)  # per member

        def act_one(state, observation, key, tick):
            return act(state, observation[None], jax.random.fold_in(key, tick))[0]

        def key(seed, step, episode):
            # The first number keeps these keys apart from those of training, which are split from the same seed.
            stream = jax.random.fold_in(jax.random.PRNGKey(seed), 0x6576616C)
            return jax.random.fold_in(jax.random.fold_in(stream, step), episode)

        self.act = jax.jit(jax.vmap(jax.vmap(act_one, in_axes=(None, 0, 0, 0))))
        self.keys = jax.jit(jax.vmap(jax.vmap(key, in_axes=(None, None, 0)), in_axes=(0, None, None)))
        total = self.lanes * len(seeds)
        parts = np.array_split(np.arange(total), min(workers or usable_cores(), total))
        self.slices = [slice(x[0], x[-1] + 1) for x in parts]
        self.workers = Workers(_work, [(make_env, part.stop - part.start) for part in self.slices])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.workers.__exit__()

    def __call__(self, state: Any, step: int) -> dict[str, Any] | None:
        """Results at this step of training: arrays (members, episodes) named return, length, and success and support
        where the environment reports them; `paths`, the xy positions in each episode of the first member.

        state: of all members. Returns None if the evaluation is stopped. Raises UserError if an environment fails.
        """
        keys = np.asarray(self.keys(np.array(self.seeds), step, np.arange(self.episodes)))  # (members, episodes, 2)
        queues = [list(range(lane, self.episodes, self.lanes)) for _ in self.seeds for lane in range(self.lanes)]
        owner = np.repeat(np.arange(len(self.seeds)), self.lanes)  # lane -> member
        environment_seeds = [
            [environment_seed(self.seeds[owner[lane]], step, episode) for episode in queue]
            for lane, queue in enumerate(queues)
        ]
        if (replies := self._ask([("start", environment_seeds[part]) for part in self.slices])) is None:
            return None
        observations = np.concatenate(replies)
        position = np.zeros(len(queues), int)  # in the lane's queue
        tick: np.ndarray = np.zeros(len(queues), np.int32)  # in the episode
        active = np.ones(len(queues), bool)
        shape = (len(self.seeds), self.lanes)
        total = self.episodes * len(self.seeds)
        with progress_bar("evaluate", total, "episode", leave=False, shown=self.progress) as bar:
            while active.any():
                episode = [queue[min(p, len(queue) - 1)] for queue, p in zip(queues, position)]
                lane_keys = keys[owner, episode].reshape(*shape, -1)
                actions = self.act(state, observations.reshape(*shape, -1), lane_keys, tick.reshape(shape))
                actions = np.asarray(actions).reshape(len(queues), -1)
                if (replies := self._ask([("step", actions[part]) for part in self.slices])) is None:
                    return None
                observations = np.concatenate([reply[0] for reply in replies])
                done = np.concatenate([reply[1] for reply in replies])
                tick = np.where(done, 0, tick + 1).astype(np.int32)
                position += done
                active &= position < [len(queue) for queue in queues]
                bar.update(int(done.sum()))
        replies = self._ask([("results", None)] * len(self.slices))
        return None if replies is None else self._gather([lane for reply in replies for lane in reply])

    def _gather(self, lanes: list[list[dict]]) -> dict[str, Any]:
        """Arranges the records of each lane's episodes by member and episode."""
        records = [
            [lanes[i * self.lanes + e % self.lanes][e // self.lanes] for e in range(self.episodes)]
            for i in range(len(self.seeds))
        ]
        reported = {name for row in records for record in row for name in record}
        names = [name for name in (*INFO, "return", "length") if name in reported]
        # An environment may report a success only where there is one.
        results = {name: np.array([[record.get(name, 0.0) for record in row] for row in records]) for name in names}
        return results | {"paths": [record["path"] for record in records[0]]}

    def _ask(self, messages: list[tuple]) -> list | None:
        """Sends one message to each worker, and returns each one's answer; None if asked to stop meanwhile."""
        for pipe, message in zip(self.workers.pipes, messages):
            self.workers.send(pipe, message)
        answers = []
        for pipe in self.workers.pipes:
            while not pipe.poll(0.5):  # an environment may hang
                if self.stopping():
                    return None
            answers.append(self.workers.receive(pipe))
        return None if self.stopping() else answers


def environment_seed(seed: int, step: int, episode: int) -> int:
    """The seed of the environment in one episode of one evaluation."""
    return int(np.random.SeedSequence([seed, step, episode]).generate_state(1)[0])


# -------------------------------------------------------------------------------------------------------------- worker


def _work(pipe: Connection, make_env: Callable[..., gymnasium.Env], num_lanes: int) -> None:
    """Answers until the pipe ends: start (episode seeds of each lane), step (an action for each lane), results."""
    lanes = [Lane(make_env()) for _ in range(num_lanes)]
    while True:
        command, message = pipe.recv()
        try:
            if command == "start":
                answer: Any = np.stack([lane.start(queue) for lane, queue in zip(lanes, message)])
            elif command == "step":
                observations, done = zip(*(lane.step(action) for lane, action in zip(lanes, message)))
                answer = np.stack(observations), np.array(done)
            else:
                answer = [lane.records for lane in lanes]
        except Exception as error:
            raise failure(error, lanes[0].name) from None
        pipe.send(answer)


class Lane:
    """One environment that plays a list of seeded episodes, one after the other. Raises UserError for what it returns
    that is not a finite number, or of another shape than its spaces say."""

    def __init__(self, env: gymnasium.Env):
        self.env = env
        self.name = f"the environment {env.spec.id if env.spec else type(env.unwrapped).__name__}"
        self.shape = env.observation_space.sample().shape

    def start(self, seeds: list[int]) -> np.ndarray:
        """Begins the first episode; returns its observation."""
        self.seeds = seeds
        self.records: list[dict[str, Any]] = []
        return self._reset()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        """One step, and whether it ended an episode; the next one starts at once. After the last, zeros and False."""
        if len(self.records) == len(self.seeds):
            return self._reset(), False
        np.random.set_bit_generator(self.global_random)  # type: ignore[attr-defined]
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.rewards.append(float(self._checked("reward", reward)))
        if "xy" in info:
            self.path.append(info["xy"][:2])
        if not (terminated or truncated):
            return self._checked("observation", observation, self.shape, np.float32), False
        record: dict[str, Any] = {name: float(self._checked(name, info[name])) for name in INFO if name in info}
        record |= {"return": sum(self.rewards), "length": len(self.rewards), "path": np.array(self.path, np.float32)}
        self.records.append(record)
        return self._reset(), True

    def _reset(self) -> np.ndarray:
        if len(self.records) == len(self.seeds):
            return np.zeros(self.shape, np.float32)
        seed = self.seeds[len(self.records)]
        # OGBench also draws from NumPy's global generator, so each episode brings its own.
        self.global_random = np.random.MT19937(seed)
        np.random.set_bit_generator(self.global_random)  # type: ignore[attr-defined]
        self.env.action_space.seed(seed)
        self.rewards: list[float] = []
        self.path: list[np.ndarray] = []
        return self._checked("observation", self.env.reset(seed=seed)[0], self.shape, np.float32)

    def _checked(self, what: str, value: Any, shape: tuple = (), kind: type = float) -> np.ndarray:
        try:
            array: np.ndarray = np.asarray(value, kind)
        except (TypeError, ValueError):
            array = np.array(np.nan)
        if array.size == 1 and shape == ():
            array = array.reshape(())
        if array.shape != shape or not np.isfinite(array).all():
            numbers = f"finite numbers of shape {shape}" if shape else "a finite number"
            raise UserError(f"{self.name} gave the {what} {value!r:.80}, which is not {numbers}.")
        return array
