"""Trains the directional ant policy that antmaze data are collected with. Soft actor-critic (arXiv 1812.05905) by
OGBench's recipe (arXiv 2410.20092, appendix): `online-ant-v0` without its position, plus a unit direction; the reward
is the way gone in that direction, in metres.

    python tools/train_ant.py --out ant_expert.npz                     # OGBench's recipe, 400,000 updates
    python tools/train_ant.py --out ant_expert.npz --updates 200000 --num-envs 4 --learning-rate 3e-4 \\
        --resample-interval 50

The second command made common/data/ant_expert.npz in 34 minutes on one core. A file is saved
every `--eval-every` updates, always whole: Dense_0 to Dense_2 of tanh(Dense_2(gelu(Dense_1(gelu(Dense_0(observation,
direction)))))), 29 -> 256 -> 256 -> 8, and Dense_3, the log standard deviation. Different from the recipe: the critics
have LayerNorm (they are those of the scripts), and an episode never terminates, because it does not in the mazes: the
ant has to get up again.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
import shared  # noqa: F401  (finds common)
import tyro
from tqdm import tqdm

from common.args import one_line_errors
from common.critics import MLP, Critic
from common.system import replacing

HIDDEN_DIMS, BATCH_SIZE = (256, 256), 256  # actor and critic; transitions per update
DISCOUNT, TARGET_RATE = 0.99, 0.005  # the target critic moves by this rate per update


@dataclass(frozen=True)
class Args:
    out: str
    """npz file to write"""
    seed: int = 0
    """of everything"""
    updates: int = 400_000
    """gradient steps"""
    num_envs: int = 1
    """environment steps per gradient step, each in its own environment"""
    resample_interval: int = 100
    """steps until the ant is given a new direction"""
    eval_every: int = 25_000
    """updates between evaluations, each of which also saves"""
    warmup: int = 10_000
    """environment steps with random actions before the first update"""
    learning_rate: float = 1e-4
    """Adam, for actor, critic and entropy weight"""


class TrainState(NamedTuple):
    params: dict  # actor, critic, log_entropy_weight
    target_critic: dict
    optimizer_state: optax.OptState
    key: jax.Array


def make_sac(args: Args, observation_dim: int, action_dim: int):
    """init(key) -> state; update(state, batch) -> state; act(params, observations, key or None) -> actions, the mean
    without a key."""
    actor = MLP(HIDDEN_DIMS, 2 * action_dim)
    critic = Critic(HIDDEN_DIMS)
    optimizer = optax.adam(args.learning_rate)
    target_entropy = -0.5 * action_dim

    def init(key):
        key, actor_key, critic_key = jax.random.split(key, 3)
        params = {
            "actor": actor.init(actor_key, jnp.zeros(observation_dim)),
            "critic": critic.init(critic_key, jnp.zeros(observation_dim), jnp.zeros(action_dim)),
            "log_entropy_weight": jnp.zeros(()),
        }
        target_critic = jax.tree.map(jnp.copy, params["critic"])
        return TrainState(params, target_critic, optimizer.init(params), key)

    def sample_actions(actor_params, observations, key):
        mean, log_std = jnp.split(actor.apply(actor_params, observations), 2, axis=-1)
        log_std = jnp.clip(log_std, -5, 2)
        noise = jax.random.normal(key, mean.shape)
        raw = mean + jnp.exp(log_std) * noise
        log_prob = -0.5 * noise**2 - log_std - 0.5 * jnp.log(2 * jnp.pi)
        log_prob -= 2 * (jnp.log(2) - raw - jax.nn.softplus(-2 * raw))  # log of tanh's derivative
        return jnp.tanh(raw), log_prob.sum(axis=-1)

    def loss(params, state, batch, critic_key, actor_key):
        entropy_weight = jax.lax.stop_gradient(jnp.exp(params["log_entropy_weight"]))

        next_actions, next_log_probs = sample_actions(state.params["actor"], batch["next_observations"], critic_key)
        next_q = critic.apply(state.target_critic, batch["next_observations"], next_actions).min(axis=0)
        target = batch["rewards"] + DISCOUNT * (next_q - entropy_weight * next_log_probs)  # never terminal
        q = critic.apply(params["critic"], batch["observations"], batch["actions"])
        critic_loss = jnp.mean((q - jax.lax.stop_gradient(target)) ** 2)

        actions, log_probs = sample_actions(params["actor"], batch["observations"], actor_key)
        q = critic.apply(state.params["critic"], batch["observations"], actions).min(axis=0)
        actor_loss = jnp.mean(entropy_weight * log_probs - q)

        entropy = -jax.lax.stop_gradient(log_probs).mean()
        weight_loss = jnp.exp(params["log_entropy_weight"]) * (entropy - target_entropy)
        return critic_loss + actor_loss + weight_loss

    def update(state, batch):
        key, critic_key, actor_key = jax.random.split(state.key, 3)
        grads = jax.grad(loss)(state.params, state, batch, critic_key, actor_key)
        updates, optimizer_state = optimizer.update(grads, state.optimizer_state)
        params = optax.apply_updates(state.params, updates)
        target_critic = optax.incremental_update(params["critic"], state.target_critic, TARGET_RATE)
        return TrainState(params, target_critic, optimizer_state, key)

    def act(actor_params, observations, key):
        if key is None:
            return jnp.tanh(jnp.split(actor.apply(actor_params, observations), 2, axis=-1)[0])
        return sample_actions(actor_params, observations, key)[0]

    return init, jax.jit(update, donate_argnums=0), jax.jit(act)


def make_env(args: Args) -> gymnasium.Env:
    import ogbench.online_locomotion  # noqa: F401  (registers online-ant-v0)
    from ogbench.online_locomotion.wrappers import GymXYWrapper

    env = gymnasium.make("online-ant-v0", terminate_when_unhealthy=False)
    return GymXYWrapper(env, args.resample_interval)


def evaluate(env: gymnasium.Env, act, actor_params) -> float:
    """Metres gone in the commanded direction per episode of 1,000 steps, with the noise of OGBench's data collection;
    a mean over five."""
    rng, metres = np.random.default_rng(0), 0.0
    for _ in range(5):
        observation, done = env.reset()[0], False
        while not done:
            action = np.asarray(act(actor_params, observation, None))
            action = np.clip(action + 0.2 * rng.standard_normal(action.shape), -1, 1)
            observation, reward, _, done, _ = env.step(action)
            metres += float(reward)
    return metres / 5


def save(path: Path, actor_params: dict, action_dim: int) -> None:
    """The file is whole at any time. Raises UserError if it cannot be written."""
    layers = actor_params["params"].items()
    arrays: dict[str, Any] = {f"{name}/{k}": np.asarray(x) for name, layer in layers for k, x in layer.items()}
    for k in ("bias", "kernel"):  # mean and log standard deviation, which come from one layer
        arrays[f"Dense_2/{k}"], arrays[f"Dense_3/{k}"] = np.split(arrays[f"Dense_2/{k}"], [action_dim], axis=-1)
    with replacing(path) as temporary, open(temporary, "xb") as file:
        np.savez(file, **arrays)


def main(args: Args) -> None:
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    np.random.seed(args.seed)  # the wrapper draws its directions from NumPy's global generator
    rng = np.random.default_rng(args.seed)
    envs = [make_env(args) for _ in range(args.num_envs)]
    test_env = make_env(args)
    observation_dim, action_dim = (len(space.sample()) for space in (envs[0].observation_space, test_env.action_space))
    init, update, act = make_sac(args, observation_dim, action_dim)
    state = init(jax.random.PRNGKey(args.seed))

    wide = ("f4", observation_dim)
    fields = [("observations", *wide), ("actions", "f4", action_dim), ("rewards", "f4"), ("next_observations", *wide)]
    buffer, size = np.zeros(args.updates * args.num_envs + args.warmup, fields), 0
    observations = np.array([env.reset(seed=args.seed + i)[0] for i, env in enumerate(envs)])
    test_env.reset(seed=args.seed + 10_000)

    bar = tqdm(range(1 - args.warmup // len(envs), args.updates + 1), unit="step", mininterval=5)
    for step in bar:  # from 1 on with an update
        if step < 1:
            actions = rng.uniform(-1, 1, (len(envs), action_dim))
        else:
            key = jax.random.fold_in(jax.random.PRNGKey(args.seed + 1), step)
            actions = np.asarray(act(state.params["actor"], observations, key))
        for i, env in enumerate(envs):
            observation, reward, _, truncated, _ = env.step(actions[i])
            buffer[size] = (observations[i], actions[i], reward, observation)
            observations[i] = env.reset()[0] if truncated else observation
            size += 1
        if step < 1:
            continue
        batch = buffer[rng.integers(size, size=BATCH_SIZE)]
        state = update(state, {name: batch[name] for name, *_ in fields})
        if step % args.eval_every == 0 or step == args.updates:
            save(Path(args.out), state.params["actor"], action_dim)
            bar.write(f"update {step:,}: {evaluate(test_env, act, state.params['actor']):.1f} m per episode")


if __name__ == "__main__":
    with one_line_errors("train_ant"):
        main(tyro.cli(Args))
