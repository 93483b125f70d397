"""Parallel roll-outs of the policies of all seeds: success, return and length per episode.

The environments live in worker processes. A fixed number of lanes, each playing its episodes one after the other, moves
in lockstep: one batched policy call per tick for all lanes of all seeds. An episode's environment and its action noise
depend on (seed, evaluation step, episode) alone, and the lanes do not depend on the number of workers, so neither does
the result. Workers need NumPy and MuJoCo only; JAX is imported where the policy is called.
"""

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from common import UserError
from common.devices import backend, host
from common.grid import members
from common.progress import ProgressBar
from common.workers import Workers, receive, send, usable_cores

if TYPE_CHECKING:
    from common.cli import Args  # and with it what a worker does not need

MAX_LANES = 32  # environments alive at once, but one per seed at least; an OGBench cube scene takes 200 MB
INFO = ("success", "support")  # what an environment may report at the end of an episode, besides return and length


def overlaps_training() -> bool:
    """Whether evaluations run beside training: where an accelerator trains, the host is free. On a CPU both would share
    the cores."""
    return backend() != "cpu"


class Evaluator:
    """Plays `args.eval_episodes` episodes per seed: `evaluate(state, step)`. With --grid, a seed is that of one
    combination, here and below (common/grid.py). A context manager: leaving it ends the workers, and they end by
    themselves when this process dies.

    The policy runs on the host's CPU, with a copy of the state, so that training can go on meanwhile and the result is
    the same whether it does or not.

    make_env makes one environment, and can be sent to another process; act(state, observations (B, S), key) -> actions
    (B, A), and `state` has a leading axis of seeds. Raises UserError if --capture-video cannot film here.
    """

    def __init__(self, args: "Args", make_env: Callable[..., gymnasium.Env], act: Callable):
        import jax  # not at the top: the workers import this module

        self.device, self.thread = host(), ThreadPoolExecutor(1)
        self.seeds = [member.seed for member in members(args)]
        self.episodes, self.progress, self.make_env = args.eval_episodes, args.progress, make_env
        self.film_at = args.steps if args.capture_video else None
        if args.capture_video:
            play_film(make_env, lambda observation, tick: 0.0, 0, ticks=1)
        rounds = math.ceil(self.episodes / max(1, MAX_LANES // len(self.seeds)))
        self.lanes = math.ceil(self.episodes / rounds)  # per seed

        def act_one(state, observation, key, tick):
            return act(state, observation[None], jax.random.fold_in(key, tick))[0]

        def key(seed, step, episode):
            # The first number keeps these apart from the training keys, which are split from the same seed.
            stream = jax.random.fold_in(jax.random.PRNGKey(seed), 0x6576616C)
            return jax.random.fold_in(jax.random.fold_in(stream, step), episode)

        self.act = jax.jit(jax.vmap(jax.vmap(act_one, in_axes=(None, 0, 0, 0))))
        self.keys = jax.jit(jax.vmap(jax.vmap(key, in_axes=(None, None, 0)), in_axes=(0, None, None)))
        total = self.lanes * len(self.seeds)
        num_workers = min(args.eval_workers or usable_cores(), total)
        self.slices = [slice(x[0], x[-1] + 1) for x in np.array_split(np.arange(total), num_workers)]
        self.workers = Workers(_work, [(make_env, part.stop - part.start) for part in self.slices])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.workers.__exit__()
        self.thread.shutdown(wait=False, cancel_futures=True)

    def __call__(self, state: Any, step: int, stopping: Callable[[], bool] = lambda: False) -> Future:
        """The future of the results at training step `step`: arrays (seeds, episodes) named success, return, length and
        support (where the environment reports it); `paths`, the xy positions of each episode of the first seed; `film`,
        frames of its first episode after the last step with --capture-video.

        If `stopping()` is true, or becomes true while training waits for the evaluation, the result is None. result(),
        or where training waits the call itself, raises RuntimeError with the worker's traceback if an environment
        fails, UserError if a worker was killed.
        """
        import jax  # as above

        done: Future = Future()
        if stopping():
            done.set_result(None)  # the workers may still be playing for the step before
        elif overlaps_training():
            copy = jax.device_put(state, self.device, may_alias=False)  # training reuses the memory of `state`
            done = self.thread.submit(self._play, copy, step, lambda: False)
        else:
            done.set_result(self._play(state, step, stopping))
        return done

    def _play(self, state: Any, step: int, stopping: Callable[[], bool]) -> dict[str, Any] | None:
        keys = np.asarray(self.keys(np.array(self.seeds), step, np.arange(self.episodes)))  # (seeds, episodes, 2)
        queues = [list(range(lane, self.episodes, self.lanes)) for _ in self.seeds for lane in range(self.lanes)]
        owner = np.repeat(np.arange(len(self.seeds)), self.lanes)  # lane -> seed
        environment_seeds = [
            [environment_seed(self.seeds[owner[lane]], step, episode) for episode in queue]
            for lane, queue in enumerate(queues)
        ]
        observations = np.concatenate(self._ask([("start", environment_seeds[part]) for part in self.slices]))
        position = np.zeros(len(queues), int)  # in the lane's queue
        tick = np.zeros(len(queues), np.int32)  # in the episode
        active = np.ones(len(queues), bool)
        shape = (len(self.seeds), self.lanes)
        total = self.episodes * len(self.seeds)
        with ProgressBar("evaluate", total, "episode", leave=False, shown=self.progress) as bar:
            while active.any():
                if stopping():
                    return None
                episode = [queue[min(p, len(queue) - 1)] for queue, p in zip(queues, position)]
                lane_keys = keys[owner, episode].reshape(*shape, -1)
                actions = self.act(state, observations.reshape(*shape, -1), lane_keys, tick.reshape(shape))
                actions = np.asarray(actions).reshape(len(queues), -1)
                replies = self._ask([("step", actions[part]) for part in self.slices])
                observations = np.concatenate([reply[0] for reply in replies])
                done = np.concatenate([reply[1] for reply in replies])
                tick = np.where(done, 0, tick + 1).astype(np.int32)
                position += done
                active &= position < [len(queue) for queue in queues]
                bar.update(int(done.sum()))
        records = [lane for reply in self._ask([("results", None)] * len(self.slices)) for lane in reply]
        results = self._gather(records)
        if step == self.film_at:

            def choose(observation, tick):
                inputs = (np.broadcast_to(x, (*shape, len(x))) for x in (observation, keys[0, 0]))
                return np.asarray(self.act(state, *inputs, np.full(shape, tick, np.int32)))[0, 0]

            results["film"] = play_film(self.make_env, choose, environment_seed(self.seeds[0], step, 0))
        return results

    def _gather(self, records: list[list[dict]]) -> dict[str, Any]:
        """Per lane and episode -> per seed and episode."""
        by_episode = [
            [records[i * self.lanes + e % self.lanes][e // self.lanes] for e in range(self.episodes)]
            for i in range(len(self.seeds))
        ]
        names = [name for name in (*INFO, "return", "length") if name in by_episode[0][0]]
        results: dict[str, Any] = {
            name: np.array([[r[name] for r in row] for row in by_episode], np.float64) for name in names
        }
        return results | {"paths": [r["path"] for r in by_episode[0]], "film": None}

    def _ask(self, messages: list[tuple]) -> list:
        """One message to each worker, and the answer of each."""
        for pipe, message in zip(self.workers.pipes, messages):
            send(pipe, message)
        return [receive(pipe) for pipe in self.workers.pipes]


def environment_seed(seed: int, step: int, episode: int) -> int:
    """Of the environment of one episode of one evaluation."""
    return int(np.random.SeedSequence([seed, step, episode]).generate_state(1)[0])


def play_film(
    make_env: Callable[..., gymnasium.Env], act: Callable, seed: int, ticks: int | None = None
) -> list[np.ndarray]:
    """Every fourth frame of an episode, or of its first `ticks` steps. act(observation (S,), tick) -> action (A,), or
    one number for all. Raises UserError if there is no way to film."""
    try:
        env = make_env(render_mode="rgb_array")
        lane, frames = Lane(env), []
        observation, done = lane.start([seed]), False
        while not done and (ticks is None or len(lane.rewards) < ticks):
            action = np.asarray(act(observation, len(lane.rewards)), np.float32)
            if len(lane.rewards) % 4 == 0:
                frames.append(np.asarray(env.render()))
            observation, done = lane.step(np.broadcast_to(action, env.action_space.sample().shape))
        env.close()
    except UserError:
        raise
    except gymnasium.error.DependencyNotInstalled as error:
        raise UserError(f"a film cannot be made here: {error}") from None
    except Exception as error:  # each of MuJoCo's renderers has its own
        raise UserError(
            f"a film cannot be made here ({type(error).__name__}: {error}); without a screen, try MUJOCO_GL=egl, or "
            f"MUJOCO_GL=osmesa for rendering without a GPU."
        ) from None
    if frames[0].ndim != 3:
        raise UserError("a film cannot be made here: this environment has no pictures.")
    return frames


# ------------------------------------------------------------------------------------------------------------- worker


def _work(pipe: Connection, make_env: Callable[..., gymnasium.Env], num_lanes: int) -> None:
    """Answers until the pipe ends: start (episode seeds of each lane), step (an action for each lane), results."""
    lanes = [Lane(make_env()) for _ in range(num_lanes)]
    while True:
        command, message = pipe.recv()
        if command == "start":
            pipe.send(np.stack([lane.start(queue) for lane, queue in zip(lanes, message)]))
        elif command == "step":
            observations, done = zip(*(lane.step(action) for lane, action in zip(lanes, message)))
            pipe.send((np.stack(observations), np.array(done)))
        else:
            pipe.send([lane.records for lane in lanes])


class Lane:
    """One environment that plays a list of seeded episodes, one after the other."""

    def __init__(self, env: gymnasium.Env):
        self.env = env
        self.nothing = np.zeros(env.observation_space.sample().shape, np.float32)  # to observe after the last episode

    def start(self, seeds: list[int]) -> np.ndarray:
        """Begins the first episode; returns its observation."""
        self.seeds = seeds
        self.records: list[dict[str, Any]] = []
        return self._reset()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        """One step, and whether it ended an episode; the next one starts at once. After the last, zeros and False."""
        if len(self.records) == len(self.seeds):
            return self.nothing, False
        np.random.set_bit_generator(self.global_random)  # type: ignore[attr-defined]
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.rewards.append(float(reward))
        if "xy" in info:
            self.path.append(info["xy"][:2])
        if not (terminated or truncated):
            return np.asarray(observation, np.float32), False
        record: dict[str, Any] = {name: float(info[name]) for name in INFO if name in info}
        record |= {"return": sum(self.rewards), "length": len(self.rewards), "path": np.array(self.path, np.float32)}
        self.records.append(record)
        return self._reset(), True

    def _reset(self) -> np.ndarray:
        if len(self.records) == len(self.seeds):
            return self.nothing
        seed = self.seeds[len(self.records)]
        # OGBench also draws from NumPy's global generator, so each episode brings its own.
        self.global_random = np.random.MT19937(seed)
        np.random.set_bit_generator(self.global_random)  # type: ignore[attr-defined]
        self.env.action_space.seed(seed)
        self.rewards: list[float] = []
        self.path: list[np.ndarray] = []
        observation, _ = self.env.reset(seed=seed)
        return np.asarray(observation, np.float32)
