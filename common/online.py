"""The online phase, after --steps updates on the dataset: with each update, the policy takes a step in the environment,
whose transition joins the data. Losses and optimiser states go on as they are. FQL's code adds the transition before
the update; here the update runs while the environment moves, on all earlier transitions.

Each member has an environment and rows (s, a, r, m, s') of its own, and all share the dataset. A step is three programs
for all members: act, update, add. With update and add in one, XLA would copy all rows at every step.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from common.args import single
from common.buffers import ReplayBuffer, sample
from common.evaluation import Lanes
from common.runs import Run
from common.seeds import over_members
from common.system import say

STREAM = 0x6F6E6C  # keeps its random numbers apart from those of training and evaluation


class Online(Lanes):
    """Trains as the `train` of side_by_side does, from the run's checkpoint on: the actions of a running episode are
    played again. agent_of, act: what side_by_side takes and returns."""

    def __init__(self, run: Run, agent_of: Callable, act: Callable, state: Any, buffer: ReplayBuffer):
        args, self.run, self.path = run.args, run, run.directory / "online.bin"
        count, n, m = len(run.seeds), run.dataset.observation_dim, run.dataset.action_dim

        def act_one(member, observation, seed, step):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.PRNGKey(seed), STREAM), step)
            return act(member, observation[None], key)[0]

        def update_one(member, sums, buffer, rows, size):
            own = single(args, member.values) if member.values else args
            key, batch_key = jax.random.split(member.state.key)
            batch = sample_both(buffer, rows, size, batch_key, args.batch_size, own.online_share)
            state, metrics = agent_of(own).update(member.state._replace(key=key), batch)
            return member._replace(state=state), {name: sums.get(name, 0.0) + x for name, x in metrics.items()}

        self.act = jax.jit(over_members(act_one, (0, 0, 0, None), count))
        self.add = jax.jit(lambda rows, new, i: rows.at[:, i].set(new), donate_argnums=0)
        self.update = jax.jit(over_members(update_one, (0, 0, None, 0, None), count), donate_argnums=0)

        done, self.unsaved = run.step - args.steps, bytearray()
        rows = np.zeros((count, args.online_steps, 2 * n + m + 2), np.float32)
        rows[:, :done] = np.fromfile(self.path, np.float32).reshape(done, count, rows.shape[2]).swapaxes(0, 1)

        super().__init__(run.dataset.make_env, count, args.eval_workers)
        run.stack.enter_context(self)
        run.episodes = run.episodes or [[0, 0] for _ in range(count)]
        self.observations = np.zeros((count, n), np.float32)
        for member, (own, (episode, first)) in enumerate(zip(rows, run.episodes)):
            self._begin(member, episode, first)
            for action in own[first:done, n : n + m]:
                self.observations[member] = self.ask("step", {member: action})[0][0]
            if first < done and not np.array_equal(self.observations[member], own[done - 1, -n:]):
                say(f"NOTE    {run.members[member].name}: here its episode goes another way; a new one begins")
                self._begin(member, episode + 1, done)

        devices = jax.tree.leaves(state)[0].sharding
        self.rows = jax.device_put(rows, devices, may_alias=False)  # `add` reuses its memory
        sums = jax.eval_shape(self.update, state, {}, buffer, self.rows, 1)[1]
        self.zeros = jax.device_put(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), sums), devices)
        run.timed = False  # the first interval compiles

    def _begin(self, member: int, episode: int, step: int) -> None:
        """Begins an episode of a member, which further ones will follow."""
        self.run.episodes[member] = [episode, step]
        plays = self.run.seeds[member], STREAM << 32, range(episode, 2**31)
        self.observations[member] = self.ask("start", {member: plays})[0][0]

    def __call__(self, state: Any, buffer: ReplayBuffer) -> tuple[Any, dict[str, Any]]:
        """--log-every steps. Metrics have a leading axis of members; those of episodes are NaN where none ended."""
        run, seeds, (shift, scale) = self.run, np.array(self.run.seeds), self.run.dataset.treatment
        first, interval = run.step - run.args.steps, run.args.log_every or 1
        sums, records = self.zeros, [list[dict]() for _ in seeds]
        for i in range(first, first + interval):
            actions = np.asarray(self.act(state, self.observations, seeds, i))
            # Dispatched first, so that it runs while the environments move.
            state, sums = self.update(state, sums, buffer, self.rows, i)
            observations, episodes, _, ended, outcomes = zip(*self.ask("step", dict(enumerate(actions))))
            following = [record["last"] if record else x for record, x in zip(ended, observations)]
            # Paid for the state after the action, other than OGBench's files, as for FQL's numbers (success_timing).
            paid = [((reward - shift) / scale, not terminated) for reward, terminated in outcomes]
            row = np.concatenate([self.observations, actions, paid, following], axis=1, dtype=np.float32)
            self.observations = np.stack(observations)
            for member, record in enumerate(ended):
                if record:
                    records[member].append(record)
                    run.episodes[member] = [episodes[member], i + 1]
            self.unsaved += row.tobytes()
            self.rows = self.add(self.rows, row, i)
            run.stopping()  # hears a signal, which is obeyed after the interval
        metrics: dict[str, Any] = {name: np.asarray(x) / interval for name, x in sums.items()}
        for name in [x for x in ("return", "success", "length") if x in run.evaluations[-1]]:
            # An environment may report a success only where there is one.
            metrics[f"explore/{name}"] = [np.mean([x.get(name, 0) for x in own] or np.nan) for own in records]
        return state, metrics

    def append_rows(self) -> None:
        """Appends the new rows to the run's file. The checkpoint, which is written next, counts on them."""
        with open(self.path, "ab") as file:
            file.write(self.unsaved)
        self.unsaved.clear()


def sample_both(buffer: ReplayBuffer, rows: jax.Array, size: Any, key: jax.Array, batch_size: int, share: Any) -> dict:
    """B transitions of the dataset and of the first `size` online rows (C, 2 S + A + 2): each drawn uniformly from both
    together (share: None), or so large a share from online. Where size is 0, the batch is that of `sample`."""
    offline, (n, m) = sample(buffer, key, batch_size), (buffer.observations.shape[1], buffer.actions.shape[1])
    row_key, choice_key = jax.random.split(jax.random.fold_in(key, STREAM))
    drawn = rows[jax.random.randint(row_key, (batch_size,), 0, jnp.maximum(size, 1))]
    online = jnp.split(drawn, [n, n + m, n + m + 1, n + m + 2], axis=1)  # in the order of a batch's arrays
    if share is None:
        chosen = jax.random.uniform(choice_key, (batch_size,)) < size / (size + len(buffer.rows))
    else:  # spread evenly, because a loss may take a part of the batch, as IDQL's do
        chosen = (jnp.arange(batch_size) * share % 1 < share) & (size > 0)
    return {name: jnp.where(chosen, new.T, x.T).T.reshape(x.shape) for (name, x), new in zip(offline.items(), online)}
