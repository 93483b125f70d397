"""How fast the scripts train, and what that is compared with: `python tools/bench.py`.

Everything is measured in one process, in turns, and reported as the median over the rounds:
  scan      the script's way: dataset on the device, many updates in one compiled program
  host      the way of the authors' code: a NumPy batch from a dataset on the host, one dispatch per update
  ceiling   a large matrix product, the most arithmetic per second that this device gives to JAX here
FLOPs per update come from XLA's cost analysis of one update.

    python tools/bench.py                                                         # all; antmaze shapes and presets
    python tools/bench.py driftql fql --env pointmaze-medium-navigate --dims 2 2  # two of them, the small presets
    python tools/bench.py driftql --num-seeds 8 --rounds 5                        # any argument of the scripts too

The data are random numbers of the right shape: speed does not depend on them. For DROL a line below the table says what
it saves that critic and gradient are evaluated for the winning candidate only.
"""

import argparse
import functools
import importlib
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from common import UserError, runs
from common.buffers import make_buffer, sample
from common.critics import Critic
from common.datasets import Dataset

SCRIPTS = sorted(path.stem for path in Path(__file__).parent.parent.glob("*.py"))
MATMUL = 2048  # rows and columns of the product that measures the ceiling


def random_dataset(observation_dim: int, action_dim: int, size: int = 200_000) -> Dataset:
    """A dataset of random numbers, every row but the last a transition."""
    rng = np.random.default_rng(0)
    return Dataset(
        name="random",
        task=None,
        make_env=None,
        source="builtin",
        path=None,
        sha256=None,
        observations=rng.standard_normal((size, observation_dim), dtype=np.float32),
        actions=rng.uniform(-1, 1, (size, action_dim)).astype(np.float32),
        rewards=rng.standard_normal(size, dtype=np.float32),
        masks=np.ones(size, np.float32),
        rows=np.arange(size - 1, dtype=np.int32),
        num_trajectories=1,
    )


def seconds_per_call(call: Callable[[], object], budget: float) -> float:
    """Mean wall time of `call`, which is repeated until `budget` seconds have passed. `call` waits for its result."""
    began, count = time.perf_counter(), 0
    while True:
        call()
        count += 1
        elapsed = time.perf_counter() - began
        if elapsed >= budget:
            return elapsed / count


def make_scan(agent, args, dataset: Dataset, num_updates: int) -> Callable[[], object]:
    """`num_updates` updates of all seeds in one dispatch, as in the script's `main`."""

    def train_chunk(state, buffer):
        def step(state, _):
            key, batch_key = jax.random.split(state.key)
            return agent.update(state._replace(key=key), sample(buffer, batch_key, args.batch_size))

        state, metrics = jax.lax.scan(step, state, length=num_updates)
        return state, jax.tree.map(jnp.mean, metrics)

    state, buffer = runs.place(jax.vmap(agent.init)(runs.seed_keys(args)), make_buffer(dataset))
    train = jax.jit(jax.vmap(train_chunk, in_axes=(0, None)), donate_argnums=0).lower(state, buffer).compile()
    held = [state]

    def call():
        held[0], metrics = train(held[0], buffer)
        jax.block_until_ready(metrics)

    return call


def make_host(agent, args, dataset: Dataset, num_updates: int) -> Callable[[], object]:
    """The same number of updates of one seed, each with a batch gathered by NumPy and a dispatch of its own."""
    rng = np.random.default_rng(0)
    fields = {
        "observations": dataset.observations[dataset.rows],
        "actions": dataset.actions[dataset.rows],
        "rewards": dataset.rewards[dataset.rows],
        "masks": dataset.masks[dataset.rows],
        "next_observations": dataset.observations[dataset.rows + 1],
    }
    update = jax.jit(agent.update)
    held = [agent.init(jax.random.PRNGKey(args.seed))]

    def call():
        for _ in range(num_updates):
            index = rng.integers(len(dataset.rows), size=args.batch_size)
            batch = {name: x[index] for name, x in fields.items()}
            held[0], metrics = update(held[0], batch)
        jax.block_until_ready(metrics)

    call()  # compiles
    return call


def flops(function: Callable, *inputs) -> float:
    """Of one call, by XLA's cost analysis. It counts the body of a loop once, so loops are unrolled for it."""
    with mock.patch.object(jax.lax, "scan", functools.partial(jax.lax.scan, unroll=True)):
        # A function of its own, because an earlier trace of the same one, with loops, would be taken from JAX's cache.
        cost = jax.jit(lambda *inputs: function(*inputs)).lower(*inputs).compile().cost_analysis()
    return float((cost[0] if isinstance(cost, list) else cost)["flops"])


def make_ceiling() -> Callable[[], object]:
    """A product of two large float32 matrices with the backend's default precision, as the networks use it."""
    a = jax.random.normal(jax.random.PRNGKey(0), (MATMUL, MATMUL))
    multiply = jax.jit(jnp.matmul)
    multiply(a, a).block_until_ready()
    return lambda: multiply(a, a).block_until_ready()


def make_act(agent, observation_dim: int, batch: int) -> Callable[[], object]:
    """One call of the policy, observation on the host to action on the host."""
    state, key = agent.init(jax.random.PRNGKey(0)), jax.random.PRNGKey(1)
    observations = np.zeros((batch, observation_dim), np.float32)
    act = jax.jit(agent.act)
    np.asarray(act(state, observations, key))
    return lambda: np.asarray(act(state, observations, key))


def what_routing_saves(drol, args, dims: tuple[int, int], rounds: int, seconds: float) -> str:
    """DROL's actor gradient as in `drol.py`, with the gradient through all K candidates, and with the critic at all of
    them too. A test shows that the first and the last are equal."""
    state, key = drol.make_agent(args, *dims).init(jax.random.PRNGKey(0)), jax.random.PRNGKey(1)
    batch = sample(make_buffer(random_dataset(*dims, size=10_000)), key, args.batch_size)
    actor, critic = drol.Actor(args.hidden_dims, dims[1]), Critic(args.hidden_dims)
    shape = (args.batch_size, args.num_candidates, dims[1])

    def loss(actor_params, state, batch, way):
        def draw(params, latents):
            repeated = jnp.repeat(batch["observations"][:, None], latents.shape[1], axis=1)
            return repeated, jnp.clip(actor.apply(params, repeated, latents), -1, 1)

        latents = drol.sample_latents(key, shape)
        observations, candidates = draw(state.params["actor"] if way == "winner" else actor_params, latents)
        winner = drol.route(candidates, batch["actions"])[:, None, None]
        if way == "winner":
            observations, candidates = draw(actor_params, jnp.take_along_axis(latents, winner, axis=1))
        elif way == "gradient through all":
            observations, candidates = observations[:, :1], jnp.take_along_axis(candidates, winner, axis=1)
        q = critic.apply(state.params["critic"], observations, candidates)
        return drol.routed_loss(candidates, batch["actions"], q, args.bc_coef, args.q_coef)[0]

    ways = ("winner", "gradient through all", "critic at all too")
    gradients = {way: functools.partial(jax.grad(loss), way=way) for way in ways}
    inputs = (state.params["actor"], state, batch)
    compiled = {way: jax.jit(gradient) for way, gradient in gradients.items()}
    times = {way: [] for way in ways}
    for call in compiled.values():
        jax.block_until_ready(call(*inputs))
    for _, (way, call) in itertools.product(range(rounds), compiled.items()):
        times[way].append(seconds_per_call(lambda call=call: jax.block_until_ready(call(*inputs)), seconds))
    figures = [
        f"{way} {statistics.median(times[way]) * 1e3:.3g} ms, {flops(gradients[way], *inputs) / 1e9:.3g} GFLOP"
        for way in ways
    ]
    return f"drol: gradient of the actor loss, {args.num_candidates} candidates: {'; '.join(figures)}"


def measure(name: str, dims: tuple[int, int], rounds: int, seconds: float, argv: list[str]) -> dict:
    """All figures of one script; times in seconds, speeds per second."""
    script = importlib.import_module(name)
    args = runs.parse(script.Args, script.PRESETS, argv)
    dataset = random_dataset(*dims)
    agent = script.make_agent(args, *dims)

    probe = make_host(agent, args, dataset, 1)
    once = seconds_per_call(probe, min(1.0, seconds))
    # As many updates per dispatch as fit into a round, at most the script's own interval.
    num_updates = int(np.clip(seconds / once, 1, args.log_every))
    calls = {
        "scan": make_scan(agent, args, dataset, num_updates),
        "host": make_host(agent, args, dataset, num_updates),
        "ceiling": make_ceiling(),
        "act 1": make_act(agent, dims[0], 1),
        "act 256": make_act(agent, dims[0], 256),
    }
    times = {key: [] for key in calls}
    for call in calls.values():
        call()  # once unmeasured
    for i in range(rounds):
        for key, call in calls.items():
            times[key].append(seconds_per_call(call, seconds if key in ("scan", "host") else min(0.5, seconds)))
        speed = num_updates * args.num_seeds / times["scan"][-1]
        print(f"{name}, round {i + 1} of {rounds}: scan {speed:,.1f} updates/s", file=sys.stderr)
    median = {key: statistics.median(values) for key, values in times.items()}
    batch = sample(make_buffer(dataset), jax.random.PRNGKey(0), args.batch_size)
    per_update = flops(agent.update, agent.init(jax.random.PRNGKey(0)), batch)
    scan = num_updates * args.num_seeds / median["scan"]
    return {
        "script": name,
        "scan": scan,
        "host": num_updates / median["host"],
        "ratio": statistics.median(args.num_seeds * h / s for h, s in zip(times["host"], times["scan"])),
        "gflop": per_update / 1e9,
        "gflops": per_update * scan / 1e9,
        "ceiling": 2 * MATMUL**3 / median["ceiling"] / 1e9,
        # One after the other, to choose an action: the reverse steps of a diffusion, then the critic on the samples.
        "passes": args.diffusion_steps + 1 if hasattr(args, "diffusion_steps") else 1,
        "act 1": median["act 1"],
        "act 256": median["act 256"],
        "note": what_routing_saves(script, args, dims, rounds, min(2.0, seconds)) if name == "drol" else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="bench.py [SCRIPT ...] [options] [arguments of the scripts]",
    )
    parser.add_argument("--dims", type=int, nargs=2, default=(29, 8), help="observation and action dimension")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured, in turns")
    parser.add_argument("--seconds", type=float, default=5.0, help="per measurement")
    # By hand, because argparse would take the values of the scripts' own arguments for names of scripts.
    names = list(itertools.takewhile(lambda word: not word.startswith("-"), sys.argv[1:]))
    known, rest = parser.parse_known_args(sys.argv[1 + len(names) :])
    for name in names:
        if name not in SCRIPTS:
            sys.exit(f"bench: error: no script '{name}'; there are {', '.join(SCRIPTS)}.")
    try:
        rows = [measure(name, tuple(known.dims), known.rounds, known.seconds, rest) for name in names or SCRIPTS]
    except UserError as error:
        sys.exit(f"bench: error: {error}")
    print(f"\n{runs.device_summary()}\n")
    columns = ["script", "scan, updates/s", "host, updates/s", "scan / host", "GFLOP/update", "GFLOP/s"]
    columns += ["ceiling, GFLOP/s", "share", "passes per action", "act 1", "act 256"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(
            f"| {row['script']} | {row['scan']:,.1f} | {row['host']:,.1f} | {row['ratio']:.2f} | {row['gflop']:.3g} "
            f"| {row['gflops']:,.0f} | {row['ceiling']:,.0f} | {row['gflops'] / row['ceiling']:.0%} "
            f"| {row['passes']} | {row['act 1'] * 1e3:.2f} ms | {row['act 256'] * 1e3:.2f} ms |"
        )
    for note in filter(None, (row["note"] for row in rows)):
        print(f"\n{note}")


if __name__ == "__main__":
    main()
