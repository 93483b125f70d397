"""Trains the directional ant policy that antmaze data are collected with. Soft actor-critic
(arXiv 1812.05905) by OGBench's recipe (arXiv 2410.20092, appendix): `online-ant-v0` without its position, plus a unit
direction; the reward is the way gone in that direction, in metres.

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
import tyro
from tqdm import tqdm

from common import UserError
from common.args import one_line_errors
from common.critics import MLP, Critic
from common.system import replacing


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
    eval_episodes: int = 5
    """episodes of 1,000 steps per evaluation"""
    warmup: int = 10_000
    """environment steps with random actions before the first update"""
    batch_size: int = 256
    """transitions per update"""
    learning_rate: float = 1e-4
    """Adam, for actor, critic and entropy weight"""
    discount: float = 0.99
    """gamma"""
    target_rate: float = 0.005
    """how far the target critic moves per update"""
    hidden_dims: tuple[int, ...] = (256, 256)
    """actor and critic"""


class TrainState(NamedTuple):
    params: dict  # actor, critic, log_entropy_weight
    target_critic: dict
    optimizer_state: optax.OptState
    key: jax.Array


def make_sac(args: Args, observation_dim: int, action_dim: int):
    """init(key) -> state; update(state, batch) -> state; act(params, observations, key or None) -> actions, the mean
    without a key."""
    actor = MLP(args.hidden_dims, 2 * action_dim)
    critic = Critic(args.hidden_dims)
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
        target = batch["rewards"] + args.discount * (next_q - entropy_weight * next_log_probs)  # never terminal
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
        target_critic = optax.incremental_update(params["critic"], state.target_critic, args.target_rate)
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


def evaluate(env: gymnasium.Env, act, actor_params, episodes: int, action_noise: float = 0.2) -> tuple[float, float]:
    """Metres gone in the commanded direction per episode of 1,000 steps, and the share of steps upside down, with the
    noise of OGBench's data collection."""
    rng = np.random.default_rng(0)
    metres, upside_down, steps = 0.0, 0, 0
    for _ in range(episodes):
        observation, _ = env.reset()
        done = False
        while not done:
            action = np.asarray(act(actor_params, observation, None))
            action = np.clip(action + action_noise * rng.standard_normal(action.shape), -1, 1)
            observation, reward, _, done, _ = env.step(action)
            metres, steps = metres + float(reward), steps + 1
            upside_down += is_upside_down(env)
    return metres / episodes, upside_down / steps


def is_upside_down(env: Any) -> bool:
    """Whether the torso's own upward axis points down."""
    _, x, y, _ = env.unwrapped.data.qpos[3:7]  # quaternion w, x, y, z
    return 1 - 2 * (x**2 + y**2) < 0


def save(path: Path, actor_params: dict, action_dim: int) -> None:
    """The file is whole at any time. Raises UserError if it cannot be written."""
    layers = {name: {k: np.asarray(x) for k, x in layer.items()} for name, layer in actor_params["params"].items()}
    *_, last = sorted(layers)
    head, number = layers.pop(last), int(last.removeprefix("Dense_"))
    layers[f"Dense_{number}"] = {k: x[..., :action_dim] for k, x in head.items()}
    layers[f"Dense_{number + 1}"] = {k: x[..., action_dim:] for k, x in head.items()}
    arrays: dict[str, Any] = {f"{name}/{k}": x for name, layer in layers.items() for k, x in layer.items()}
    with replacing(path) as temporary, open(temporary, "xb") as file:
        np.savez(file, **arrays)


def main(args: Args) -> None:
    if not Path(args.out).absolute().parent.is_dir():
        raise UserError(f"--out {args.out}: there is no such folder.")
    np.random.seed(args.seed)  # the wrapper draws its directions from NumPy's global generator
    rng = np.random.default_rng(args.seed)
    envs = [make_env(args) for _ in range(args.num_envs)]
    test_env = make_env(args)
    observation_dim, action_dim = (len(space.sample()) for space in (envs[0].observation_space, test_env.action_space))
    init, update, act = make_sac(args, observation_dim, action_dim)
    state = init(jax.random.PRNGKey(args.seed))

    capacity = args.updates * args.num_envs + args.warmup
    sizes = {
        "observations": (capacity, observation_dim),
        "actions": (capacity, action_dim),
        "rewards": (capacity,),
        "next_observations": (capacity, observation_dim),
    }
    buffer = {name: np.zeros(size, np.float32) for name, size in sizes.items()}
    size = 0

    def step_all(observations, actions, size):
        for i, env in enumerate(envs):
            observation, reward, _, truncated, _ = env.step(actions[i])
            for name, value in zip(sizes, (observations[i], actions[i], reward, observation)):
                buffer[name][size + i] = value
            observations[i] = env.reset()[0] if truncated else observation
        return size + len(envs)

    observations = np.array([env.reset(seed=args.seed + i)[0] for i, env in enumerate(envs)])
    test_env.reset(seed=args.seed + 10_000)
    while size + len(envs) <= args.warmup:
        size = step_all(observations, rng.uniform(-1, 1, (len(envs), action_dim)), size)

    bar = tqdm(range(1, args.updates + 1), unit="update", mininterval=5)
    for step in bar:
        key = jax.random.fold_in(jax.random.PRNGKey(args.seed + 1), step)
        size = step_all(observations, np.asarray(act(state.params["actor"], observations, key)), size)
        index = rng.integers(size, size=args.batch_size)
        state = update(state, {name: x[index] for name, x in buffer.items()})
        if step % args.eval_every == 0 or step == args.updates:
            metres, upside_down = evaluate(test_env, act, state.params["actor"], args.eval_episodes)
            save(Path(args.out), state.params["actor"], action_dim)
            bar.write(f"update {step:,}: {metres:.1f} m per episode, {upside_down:.1%} of the steps upside down")


if __name__ == "__main__":
    with one_line_errors("train_ant"):
        main(tyro.cli(Args))
