"""One compiled program that trains all seeds."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from common.buffers import ReplayBuffer
from common.cli import Args, say
from common.results import device_summary
from common.signals import signals_end_the_process


def seed_keys(args: Args) -> jax.Array:
    """One PRNG key per seed, (num_seeds, 2)."""
    return jax.vmap(jax.random.PRNGKey)(jnp.uint32(args.seed) + jnp.arange(args.num_seeds, dtype=jnp.uint32))


def place(state: Any, buffer: ReplayBuffer) -> tuple[Any, ReplayBuffer]:
    """With several devices, and seeds that divide evenly among them: the seeds spread, the dataset on each of them.
    Otherwise everything on the first device."""
    devices, num_seeds = jax.devices(), len(jax.tree.leaves(state)[0])
    if num_seeds % len(devices):
        say(f"NOTE    {num_seeds} seeds cannot be shared evenly by {len(devices)} devices; only the first one works")
    if len(devices) == 1 or num_seeds % len(devices):
        return state, buffer
    mesh = jax.sharding.Mesh(devices, ("seeds",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("seeds"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.device_put(state, spread), jax.device_put(buffer, everywhere)


def over_seeds(train_chunk: Callable, state: Any) -> Callable:
    """`train_chunk(state, buffer) -> (state, metrics)` of one seed as a function of all seeds, a leading axis of state
    and metrics.

    One seed runs without that axis, with which XLA copies the parameters at every update of the loop.
    """
    if len(jax.tree.leaves(state)[0]) == 1:

        def alone(state, buffer):
            one = jax.tree.map(lambda x: x[0], state)
            return jax.tree.map(lambda x: x[None], train_chunk(one, buffer))

        return alone
    return jax.vmap(train_chunk, in_axes=(0, None))


def compile_over_seeds(train_chunk: Callable, state: Any, buffer: ReplayBuffer) -> tuple[Callable, list[str]]:
    """`train_chunk(state, buffer) -> (state, metrics)` of one seed as a compiled program for all: state and metrics get
    a leading axis of seeds, the state is donated (its buffers are reused).

    Returns train(state, buffer) -> (state, metrics as NumPy arrays (num_seeds,), seconds it took), and the metrics'
    names.
    """
    say(f"device  {device_summary()}")
    began = time.monotonic()
    with signals_end_the_process():
        lowered = jax.jit(over_seeds(train_chunk, state), donate_argnums=0).lower(state, buffer)
        compiled = lowered.compile()
    say(f"compiled in {time.monotonic() - began:.1f} s")

    def train(state, buffer):
        began = time.monotonic()
        state, metrics = compiled(state, buffer)
        metrics = {name: np.asarray(x, np.float64) for name, x in metrics.items()}  # waits for the device
        return state, metrics, time.monotonic() - began

    return train, sorted(lowered.out_info[1])
