"""One compiled program that trains all members side by side: every seed of every combination of `--grid`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from common.args import BaseArgs, members, single
from common.buffers import ReplayBuffer
from common.system import say


class MemberState(NamedTuple):
    """What changes in one member. A checkpoint is this tuple, with a leading axis of members on every array."""

    state: Any  # the script's TrainState
    values: dict[str, jax.Array]  # of the member's combination: name -> number; empty without --grid


def side_by_side(
    args: BaseArgs, agent_of: Callable, train_interval: Callable | None = None
) -> tuple[Callable, Callable, Callable]:
    """The functions of a run, for all members.

    agent_of(args) -> agent; train_interval(agent, state, buffer) -> (state, metrics), both of one member.
    Returns init() -> state with a leading axis of members; train(state, buffer) -> (state, metrics (members,)), which
    reuses the memory of `state`; and act(state, observations (B, S), key) -> actions (B, A) of one member.

    The values of a grid are arrays inside the program, and the agent is made of them while it is traced.
    """
    found = members(args)

    def agent_with(values):
        return agent_of(single(args, values) if values else args)

    def init():
        keys = jax.vmap(jax.random.PRNGKey)(jnp.array([member.seed for member in found], jnp.uint32))
        values = {name: jnp.array([member.values[name] for member in found], jnp.float32) for name in found[0].values}
        return jax.jit(jax.vmap(lambda key, values: MemberState(agent_with(values).init(key), values)))(keys, values)

    def train_one(member, buffer):
        state, metrics = train_interval(agent_with(member.values), member.state, buffer)
        return MemberState(state, member.values), metrics

    def act(member, observations, key):
        return agent_with(member.values).act(member.state, observations, key)

    return init, jax.jit(over_members(train_one, (0, None), len(found)), donate_argnums=0), act


def over_members(function: Callable, in_axes: tuple[int | None, ...], count: int) -> Callable:
    """`jax.vmap` over the members, but for a single one: without the leading axis, with which XLA copies the parameters
    at every update."""

    def alone(*inputs):
        own = [x if axis is None else jax.tree.map(lambda y: y[0], x) for x, axis in zip(inputs, in_axes)]
        return jax.tree.map(lambda y: y[None], function(*own))

    return jax.vmap(function, in_axes) if count > 1 else alone


def place(state: Any, buffer: ReplayBuffer) -> tuple[Any, ReplayBuffer]:
    """Spreads the members over several devices, with the dataset on each of them, if they divide evenly."""
    devices, count = jax.devices(), len(jax.tree.leaves(state)[0])
    say(f"device  {len(devices)} x {devices[0].device_kind}")
    if devices[0].platform == "cpu" and Path("/proc/driver/nvidia/version").exists():
        say("WARNING this machine has an NVIDIA GPU, but JAX runs on the CPU: uv pip install -e '.[cuda12]'")
    if count % len(devices):
        say(f"NOTE    {count} side by side cannot be shared evenly by {len(devices)} devices; only the first works")
    if len(devices) == 1 or count % len(devices):
        return state, buffer
    mesh = jax.sharding.Mesh(devices, ("members",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("members"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.device_put(state, spread), jax.device_put(buffer, everywhere)
