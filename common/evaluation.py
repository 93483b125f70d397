"""Episodes of the policies of all members, in parallel: success, return and length of each.

The environments live in worker processes. A fixed number of lanes, each playing its episodes one after the other, moves
in lockstep: each tick is one batched call of the policy for all lanes. An episode depends on (seed, step of training,
episode) alone and the lanes do not depend on the number of workers, so neither do the results.
"""

import math
import multiprocessing
from collections.abc import Callable, Generator, Sequence
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


class Lanes(Workers):
    """Environments in worker processes, each of which plays the episodes that it is given. A context manager that ends
    the workers.

    make_env() makes one environment; count: of environments; workers: processes, None is one per core; stopping: a
    function that ends the waiting for an answer when it returns true.
    """

    def __init__(
        self,
        make_env: Callable[..., gymnasium.Env],
        count: int,
        workers: int | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ):
        self.stopping = stopping
        parts = np.array_split(np.arange(count), min(workers or usable_cores(), count))
        self.parts = [part.tolist() for part in parts]  # lanes of each worker
        super().__init__(work, [(make_env, part) for part in self.parts])

    def ask(self, command: str, message: dict[int, Any]) -> list[tuple]:
        """Tells some lanes to `start` (seed, step, episodes) or to `step` (action). Returns what `play` yields for each
        of them, in the order of lanes; nothing if asked to stop meanwhile."""
        parts = [{lane: message[lane] for lane in part if lane in message} for part in self.parts]
        asked = [(pipe, part) for pipe, part in zip(self.pipes, parts) if part]
        for pipe, part in asked:
            self.send(pipe, (command, part))
        answers = []
        for pipe, _ in asked:
            while not pipe.poll(0.5):  # an environment may hang
                if self.stopping():
                    return []
            answers += self.receive(pipe)
        return [] if self.stopping() else answers


class Evaluator(Lanes):
    """Plays episodes: `evaluate(state, step)`.

    make_env, workers, stopping: as for Lanes; act(state, observations (B, S), key) -> actions (B, A) is the policy of
    one member; seeds: one per member; episodes: per member.
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
        self.seeds, self.episodes, self.progress = seeds, episodes, progress
        rounds = math.ceil(episodes / max(1, MAX_LANES // len(seeds)))
        self.lanes = math.ceil(episodes / rounds)  # per member
        super().__init__(make_env, self.lanes * len(seeds), workers, stopping)

    def __call__(self, state: Any, step: int) -> dict[str, Any] | None:
        """Results at this step of training: arrays (members, episodes) named return, length, and success and support
        where the environment reports them; `paths`, the xy positions in each episode of the first member.

        state: of all members. Returns None if the evaluation is stopped. Raises UserError if an environment fails.
        """
        shape, seeds = (len(self.seeds), self.lanes), np.array(self.seeds)
        # The lanes of a member take its episodes in turn.
        turns = [range(first, self.episodes, self.lanes) for first in range(self.lanes)]
        plays = [(seed, step, episodes) for seed in self.seeds for episodes in turns]
        command, message = "start", dict[int, Any](enumerate(plays))
        records: dict[tuple[int, int], dict[str, Any]] = {}  # of member and episode
        total = len(seeds) * self.episodes
        with progress_bar("evaluate", total, "episode", leave=False, shown=self.progress) as bar:
            while True:
                if not (answers := self.ask(command, message)):
                    return None
                observations, episode, tick, ended, _ = zip(*answers)
                for lane, record in enumerate(ended):
                    if record:
                        records[lane // self.lanes, record["episode"]] = record
                        bar.update()
                if len(records) == total:
                    break
                now = [np.reshape(x, shape) for x in (episode, tick)]
                actions = self.act(state, np.reshape(observations, (*shape, -1)), seeds, step, *now)
                command, message = "step", dict(enumerate(np.asarray(actions).reshape(len(plays), -1)))
        rows = [records[member, episode] for member, episode in sorted(records)]
        names = [name for name in (*INFO, "return", "length") if any(name in row for row in rows)]
        # An environment may report a success only where there is one.
        results = {name: np.array([row.get(name, 0.0) for row in rows]).reshape(len(seeds), -1) for name in names}
        return results | {"paths": [row["path"] for row in rows[: self.episodes]]}


def work(pipe: Connection, make_env: Callable[..., gymnasium.Env], lanes: list[int]) -> None:
    """Answers `ask` until the pipe ends, for an environment of each of these lanes."""
    envs = {lane: make_env() for lane in lanes}
    first, playing = envs[lanes[0]], dict[int, Generator]()
    name = first.spec.id if first.spec else type(first.unwrapped).__name__
    multiprocessing.current_process().name = f"the environment {name}"  # for the message if it fails
    while True:
        command, message = pipe.recv()
        if command == "start":
            playing |= {lane: play(envs[lane], *episodes) for lane, episodes in message.items()}
            message = dict.fromkeys(message)
        pipe.send([playing[lane].send(x) for lane, x in message.items()])


def play(env: gymnasium.Env, seed: int, step: int, episodes: Sequence[int]) -> Generator[tuple, np.ndarray, None]:
    """A lane. Yields (observation, episode, tick in it, record, outcome), is sent the action for each observation, and
    never ends: zeros follow the last episode. With the first observation after an episode comes its record, else None.
    outcome: the last step's reward, and whether the environment ended the episode, which a time limit does not."""
    shape = env.observation_space.sample().shape
    record: dict[str, Any] | None = None
    outcome = 0.0, False
    for episode in episodes:
        episode_seed = int(np.random.SeedSequence([seed, step, episode]).generate_state(1)[0])
        # OGBench also draws from NumPy's global generator, so each episode brings its own.
        global_random = np.random.MT19937(episode_seed)
        np.random.set_bit_generator(global_random)  # type: ignore[attr-defined]
        env.action_space.seed(episode_seed)
        observation, ended = env.reset(seed=episode_seed)[0], False
        rewards: list[float] = []
        path: list[np.ndarray] = []
        while not ended:
            seen = checked("observation", observation, shape, np.float32)
            action = yield seen, episode, len(rewards), record, outcome
            record = None
            np.random.set_bit_generator(global_random)  # type: ignore[attr-defined]
            observation, reward, terminated, truncated, info = env.step(action)
            rewards.append(float(checked("reward", reward)))
            outcome = rewards[-1], bool(terminated)
            if "xy" in info:
                path.append(info["xy"][:2])
            ended = terminated or truncated
        record = {"episode": episode, "return": sum(rewards), "length": len(rewards)}
        record |= {"path": np.array(path, np.float32), "last": checked("observation", observation, shape, np.float32)}
        record |= {name: float(checked(name, info[name])) for name in INFO if name in info}
    while True:
        yield np.zeros(shape, np.float32), 0, 0, record, outcome
        record = None


def checked(what: str, value: Any, shape: tuple = (), kind: type = float) -> np.ndarray:
    """What an environment gave, as an array. Raises UserError if it is not finite numbers of this shape."""
    try:
        array: np.ndarray = np.asarray(value, kind)
        array = array if shape else array.reshape(())  # an array of one number is a number
    except (TypeError, ValueError):
        array = np.array(np.nan)
    if array.shape != shape or not np.isfinite(array).all():
        numbers = f"finite numbers of shape {shape}" if shape else "a finite number"
        name = multiprocessing.current_process().name
        raise UserError(f"{name} gave the {what} {value!r:.80}, which is not {numbers}.")
    return array
