"""Parallel roll-outs of the policies of all seeds: success, return and length per episode.

The environments live in worker processes. A fixed number of lanes, each playing its episodes one after the other, moves
in lockstep: one batched policy call per tick for all lanes of all seeds. An episode's environment and its action noise
depend on (seed, evaluation step, episode) alone, and the lanes do not depend on the number of workers, so neither does
the result. Workers need NumPy and MuJoCo only; JAX is imported where the policy is called.
"""

import math
from collections.abc import Callable
from multiprocessing.connection import Connection

import gymnasium
import numpy as np
from tqdm import tqdm

from common.datasets import Dataset
from common.workers import Workers, receive, send, usable_cores

MAX_LANES = 32  # environments alive at once; one of OGBench's cube scenes takes 200 MB
INFO = ("success", "support")  # what an environment may report at the end of an episode, besides return and length


class Evaluator:
    """Plays `args.eval_episodes` episodes per seed: `evaluate(state, step)`. A context manager: leaving it ends the
    workers, and they end by themselves when this process dies.

    act(state, observations (B, S), key) -> actions (B, A); `state` has a leading axis of seeds.
    """

    def __init__(self, args, dataset: Dataset, act: Callable):
        self.seeds = [args.seed + i for i in range(args.num_seeds)]
        self.episodes, self.progress = args.eval_episodes, args.progress
        self.film_at = args.steps if args.capture_video else None
        self.observation_dim = dataset.observation_dim
        rounds = math.ceil(self.episodes * len(self.seeds) / MAX_LANES)
        self.lanes = math.ceil(self.episodes / rounds)  # per seed
        self.act = self._compile(act)

        total = self.lanes * len(self.seeds)
        num_workers = min(args.eval_workers or usable_cores(), total)
        self.slices = [slice(x[0], x[-1] + 1) for x in np.array_split(np.arange(total), num_workers)]
        self.workers = Workers(_work, [(dataset.make_env, part.stop - part.start) for part in self.slices])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.workers.__exit__()

    def __call__(self, state, step: int, stopping: Callable[[], bool] = lambda: False) -> dict | None:
        """Results at training step `step`: arrays (seeds, episodes) named success, return, length and support (where
        the environment reports it); `paths`, the xy positions of each episode of the first seed; `film`, frames of one
        episode after the last step with --capture-video, or why there are none. None if `stopping()` became true on the
        way. Raises RuntimeError with the worker's traceback if an environment fails.
        """
        keys = self._episode_keys(step)  # (seeds, episodes, 2)
        queues = [list(range(lane, self.episodes, self.lanes)) for _ in self.seeds for lane in range(self.lanes)]
        owner = np.repeat(np.arange(len(self.seeds)), self.lanes)  # lane -> seed
        environment_seeds = [
            [_environment_seed(self.seeds[owner[lane]], step, episode) for episode in queue]
            for lane, queue in enumerate(queues)
        ]
        film = [step == self.film_at and part.start == 0 for part in self.slices]
        self._send([("start", environment_seeds[part], f) for part, f in zip(self.slices, film)])
        observations = np.concatenate(self._receive())
        position = np.zeros(len(queues), int)  # in the lane's queue
        tick = np.zeros(len(queues), np.int32)  # in the episode
        active = np.ones(len(queues), bool)
        shape = (len(self.seeds), self.lanes)
        bar = tqdm(
            total=self.episodes * len(self.seeds), desc="evaluate", unit="episode", leave=False,
            disable=None if self.progress else True,
        )  # fmt: skip
        with bar:
            while active.any():
                if stopping():
                    return None
                episode = [queue[min(p, len(queue) - 1)] for queue, p in zip(queues, position)]
                actions = self.act(
                    state,
                    observations.reshape(*shape, -1),
                    keys[owner, episode].reshape(*shape, -1),
                    tick.reshape(shape),
                )
                actions = np.asarray(actions).reshape(len(queues), -1)
                self._send([("step", actions[part]) for part in self.slices])
                replies = self._receive()
                observations = np.concatenate([reply[0] for reply in replies])
                done = np.concatenate([reply[1] for reply in replies])
                tick = np.where(done, 0, tick + 1).astype(np.int32)
                position += done
                active &= position < [len(queue) for queue in queues]
                bar.update(int(done.sum()))
        self._send([("results",)] * len(self.slices))
        replies = self._receive()
        results = self._gather([lane for reply in replies for lane in reply[0]])
        return results | {"film": replies[0][1]}

    def _gather(self, records: list[list[dict]]) -> dict:
        """Per lane and episode -> per seed and episode."""
        by_episode = [
            [records[i * self.lanes + e % self.lanes][e // self.lanes] for e in range(self.episodes)]
            for i in range(len(self.seeds))
        ]
        names = [name for name in (*INFO, "return", "length") if name in by_episode[0][0]]
        results = {name: np.array([[r[name] for r in row] for row in by_episode], np.float64) for name in names}
        return results | {"paths": [r["path"] for r in by_episode[0]]}

    def _send(self, messages: list) -> None:
        for pipe, message in zip(self.workers.pipes, messages):
            send(pipe, message)

    def _receive(self) -> list:
        return [receive(pipe) for pipe in self.workers.pipes]

    def _compile(self, act: Callable) -> Callable:
        import jax

        def act_one(state, observation, key, tick):
            return act(state, observation[None], jax.random.fold_in(key, tick))[0]

        return jax.jit(jax.vmap(jax.vmap(act_one, in_axes=(None, 0, 0, 0))))

    def _episode_keys(self, step: int) -> np.ndarray:
        import jax

        def key(seed, episode):
            # The first number keeps these apart from the training keys, which are split from the same seed.
            stream = jax.random.fold_in(jax.random.PRNGKey(seed), 0x6576616C)
            return jax.random.fold_in(jax.random.fold_in(stream, step), episode)

        keys = jax.vmap(lambda seed: jax.vmap(lambda e: key(seed, e))(np.arange(self.episodes)))
        return np.asarray(keys(np.array(self.seeds)))


def _environment_seed(seed: int, step: int, episode: int) -> int:
    return int(np.random.SeedSequence([seed, step, episode]).generate_state(1)[0])


# ------------------------------------------------------------------------------------------------------------- worker


def _work(pipe: Connection, make_env: Callable[..., gymnasium.Env], num_lanes: int) -> None:
    """Answers until the pipe ends: start (episode seeds of each lane), step (an action for each lane), results."""
    lanes: list[Lane] = []
    camera = Camera()
    while True:
        command, *message = pipe.recv()
        if command == "start":
            lanes = lanes or [Lane(make_env()) for _ in range(num_lanes)]
            seeds, film = message
            if film:
                lanes[0] = Lane(make_env(render_mode="rgb_array"), camera)
            pipe.send(np.stack([lane.start(queue) for lane, queue in zip(lanes, seeds)]))
        elif command == "step":
            observations, done = zip(*(lane.step(action) for lane, action in zip(lanes, *message)))
            pipe.send((np.stack(observations), np.array(done)))
        else:
            pipe.send(([lane.records for lane in lanes], camera.film))


class Camera:
    """Every fourth frame of one episode, or why there is none: a machine without a graphics library is no reason to
    lose a run."""

    def __init__(self):
        self.film: list[np.ndarray] | str | None = None

    def shoot(self, env: gymnasium.Env, step: int) -> None:
        self.film = [] if self.film is None else self.film
        if isinstance(self.film, str) or step % 4:
            return
        try:
            frame = env.render()
        except Exception as error:
            self.film = f"{type(error).__name__}: {error}"
            return
        self.film = "this environment has no pictures" if frame is None else [*self.film, np.asarray(frame)]


class Lane:
    """One environment that plays a list of seeded episodes, one after the other; `camera` films the first."""

    def __init__(self, env: gymnasium.Env, camera: Camera | None = None):
        self.env, self.camera = env, camera

    def start(self, seeds: list[int]) -> np.ndarray:
        self.seeds, self.records = seeds, []
        return self._reset()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        """One step, and whether it ended an episode; the next one starts at once. After the last, zeros and False."""
        if self._finished():
            return np.zeros(self.env.observation_space.shape, np.float32), False
        np.random.set_bit_generator(self.global_random)
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.rewards.append(float(reward))
        if self.camera is not None and not self.records:
            self.camera.shoot(self.env, len(self.rewards))
        if "xy" in info:
            self.path.append(info["xy"][:2])
        if not (terminated or truncated):
            return np.asarray(observation, np.float32), False
        record = {name: float(info[name]) for name in INFO if name in info}
        record |= {"return": sum(self.rewards), "length": len(self.rewards), "path": np.array(self.path, np.float32)}
        self.records.append(record)
        return self._reset(), True

    def _finished(self) -> bool:
        return len(self.records) == len(self.seeds)

    def _reset(self) -> np.ndarray:
        if self._finished():
            return np.zeros(self.env.observation_space.shape, np.float32)
        seed = self.seeds[len(self.records)]
        # OGBench also draws from NumPy's global generator, so each episode brings its own.
        self.global_random = np.random.MT19937(seed)
        np.random.set_bit_generator(self.global_random)
        self.env.action_space.seed(seed)
        self.rewards, self.path = [], []
        observation, _ = self.env.reset(seed=seed)
        return np.asarray(observation, np.float32)
