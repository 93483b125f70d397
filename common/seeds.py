"""One compiled program that trains all seeds, with --grid of all combinations."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from common.buffers import ReplayBuffer
from common.cli import Args
from common.grid import combinations, members, single
from common.progress import say
from common.results import device_summary
from common.signals import signals_end_the_process


def seed_keys(args: Args) -> jax.Array:
    """One PRNG key per seed, (num_seeds, 2)."""
    return jax.vmap(jax.random.PRNGKey)(jnp.uint32(args.seed) + jnp.arange(args.num_seeds, dtype=jnp.uint32))


class GridState(NamedTuple):
    """The state of one member of a grid; a checkpoint of a grid is this tuple, with a leading axis of members."""

    state: Any  # the script's TrainState
    values: dict[str, jax.Array]  # of the combination: name -> number


def over_grid(
    args: Args, agent_of: Callable, train_interval: Callable | None = None
) -> tuple[Callable, Callable, Callable]:
    """What a run does with its agent, for one seed or, with --grid, for one seed of one combination.

    agent_of(args) -> agent; train_interval(agent, state, buffer) -> (state, metrics), None where nothing is trained.
    Returns init() -> first state of all members, with a leading axis; train(state, buffer) -> (state, metrics) and
    act(state, observations, key) -> actions of one member. With --grid the values are arrays inside the program, part
    of the member's state, and the agent is made from them while it is traced; else they are constants.
    """
    if not args.grid:
        agent = agent_of(args)

        def train_alone(state, buffer):
            return train_interval(agent, state, buffer)

        return lambda: jax.jit(jax.vmap(agent.init))(seed_keys(args)), train_alone, agent.act

    def agent_with(values):
        return agent_of(single(args, values))

    def init():
        each = [member.values for member in members(args)]
        values = {name: jnp.array([x[name] for x in each], jnp.float32) for name in each[0]}
        keys = jnp.tile(seed_keys(args), (len(combinations(args)), 1))
        first = jax.jit(jax.vmap(lambda key, values: agent_with(values).init(key)))
        return GridState(first(keys, values), values)

    def train(member, buffer):
        state, metrics = train_interval(agent_with(member.values), member.state, buffer)
        return GridState(state, member.values), metrics

    def act(member, observations, key):
        return agent_with(member.values).act(member.state, observations, key)

    return init, train, act


def place(state: Any, buffer: ReplayBuffer) -> tuple[Any, ReplayBuffer]:
    """With several devices, and seeds that divide evenly among them: the seeds spread, the dataset on each of them.
    Otherwise everything on the first device."""
    devices, count = jax.devices(), len(jax.tree.leaves(state)[0])
    if count % len(devices):
        say(f"NOTE    {count} side by side cannot be shared evenly by {len(devices)} devices; only the first works")
    if len(devices) == 1 or count % len(devices):
        return state, buffer
    mesh = jax.sharding.Mesh(devices, ("seeds",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("seeds"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.device_put(state, spread), jax.device_put(buffer, everywhere)


def over_seeds(train_interval: Callable, state: Any) -> Callable:
    """`train_interval(state, buffer) -> (state, metrics)` of one seed as a function of all seeds, a leading axis of
    state and metrics.

    One seed runs without that axis, with which XLA copies the parameters at every update of the loop.
    """
    if len(jax.tree.leaves(state)[0]) == 1:

        def alone(state, buffer):
            one = jax.tree.map(lambda x: x[0], state)
            return jax.tree.map(lambda x: x[None], train_interval(one, buffer))

        return alone
    return jax.vmap(train_interval, in_axes=(0, None))


def compile_over_seeds(train_interval: Callable, state: Any, buffer: ReplayBuffer) -> tuple[Callable, list[str]]:
    """`train_interval(state, buffer) -> (state, metrics)` of one seed as a compiled program for all: state and metrics
    get a leading axis of seeds, the state is donated (its buffers are reused).

    Returns train(state, buffer) -> (state, metrics as NumPy arrays (members,), seconds it took), and the metrics'
    names.
    """
    say(f"device  {device_summary()}")
    began = time.monotonic()
    with signals_end_the_process():
        lowered = jax.jit(over_seeds(train_interval, state), donate_argnums=0).lower(state, buffer)
        compiled = lowered.compile()
    say(f"compiled in {time.monotonic() - began:.1f} s")

    def train(state, buffer):
        began = time.monotonic()
        state, metrics = compiled(state, buffer)
        metrics = {name: np.asarray(x, np.float64) for name, x in metrics.items()}  # waits for the device
        return state, metrics, time.monotonic() - began

    return train, sorted(lowered.out_info[1])
