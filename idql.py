"""Implicit Diffusion Q-Learning (IDQL), https://arxiv.org/abs/2304.10573, in one file.

    python idql.py --env bandit                                # a policy that works, a minute on a laptop
    python idql.py --env antmaze-large-navigate --num-seeds 8  # the benchmark, on a GPU
    python idql.py --help

Three learners, of which the policy meets the other two only when acting:
  1. a diffusion model of the behaviour policy: from Gaussian noise, T = 5 reverse steps, each one pass of a network
     that predicts the noise in its input. It sees no Q and no reward;
  2. a value network V, an expectile of Q over the dataset's actions. With `expectile` above 1/2 it leans to the good
     ones, and no action outside the data is ever asked for;
  3. a pair of Q networks with TD targets r + discount * V(s').
To act, 64 actions are drawn from the behaviour model and the one with the highest Q is taken.

There are two official codes. We follow the paper and the code of its time (April 2023, commit 89bb493 or 9cc91a6): one
update is two steps of the actor (Adam, with a cosine decay to 0 over all of them), then one of V and one
of Q on the first `critic_batch_size` transitions. Each step of the actor takes its own half of the batch (1,024), as
that code's comment and the paper say. The code as committed slices otherwise: its first step takes all 2,048, its
second an empty half, whose loss is NaN and whose gradient is zero, so that Adam moves on momentum alone. On a bandit
the denoising losses of both were equal within 1%.
The release of December 2023 is another learner: AdamW, swish, another time embedding, LayerNorm before V, one batch of
512 for all three. The paper also defines drawing the action with weights; the official evaluation takes the best, and
so do we. Different from both codes: they train on a random 95% of the data, we on all of it; the dataset lives on the
device and `log_every` updates run in one compiled program.

Protocol: 50 episodes every 125k of 1.5M updates (3M steps of the actor), score = mean success of the last three
evaluations (D4RL: normalized return of the last). The algorithm stands above the line "cut here"; below is a run of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from common.args import BaseArgs
from common.buffers import ReplayBuffer, repeat, sample
from common.critics import MLP, Critic, fan_avg, mish

# ------------------------------------------------------------------------------------------------------------ arguments


@dataclass(frozen=True)
class Args(BaseArgs):
    batch_size: int = 2048
    """transitions per update; the actor takes two steps, one on each half"""
    critic_batch_size: int = 256
    """value and critic train on the first so many of them"""
    learning_rate: float = 3e-4
    """of Adam, for actor, value and critic; the actor's falls to 0 over --steps, as half a cosine"""
    discount: float = 0.99
    """gamma of the TD target"""
    target_rate: float = 0.005
    """share of the way towards the critic that the target critic moves per update"""
    hidden_dims: tuple[int, ...] = (256, 256)
    """widths of the hidden layers, in value and critic"""
    actor_width: int | None = None
    """width of the actor's three residual blocks; None is the first of hidden_dims"""
    expectile: float = 0.7
    """which expectile of Q the value is, 0.5 to 1; the one to tune: 0.7 or 0.9"""
    diffusion_steps: int = 5
    """reverse steps from noise to action (T), each one pass of the actor"""
    num_samples: int = 64
    """actions to choose from when acting"""
    actor_target_rate: float = 0.001
    """share of the way towards the actor that the target actor, which acts, moves per step of the actor"""
    sampling_temperature: float = 1.0
    """scale of the noise in the reverse steps"""

    def check(self) -> None:
        """Raises ValueError for values that the algorithm cannot use."""
        if not 0 < self.expectile < 1:
            raise ValueError(f"--expectile {self.expectile} must lie between 0 and 1, ends excluded.")
        if self.batch_size % 2 or self.critic_batch_size > self.batch_size:
            sizes = f"--batch-size {self.batch_size} and --critic-batch-size {self.critic_batch_size}"
            raise ValueError(f"{sizes}: the first must be even, for its halves, and the second no larger.")


# ------------------------------------------------------------------------------------------------------------- networks


class Value(MLP):
    """V(s): (..., S) -> (...)."""

    output_dim: int = 1
    activation: Callable = nn.relu

    def __call__(self, observations: jax.Array) -> jax.Array:
        return super().__call__(observations).squeeze(-1)


class Actor(nn.Module):
    """eps(s, x, t) -> the noise in x: residual blocks with LayerNorm (the paper's LN-ResNet) on x, s, and an embedding
    of t side by side. t: integers 0 to T - 1, one number or one per row. `training` turns dropout on."""

    width: int
    action_dim: int
    num_blocks: int = 3
    dropout: float = 0.1
    time_dim: int = 64

    @nn.compact
    def __call__(self, observations: jax.Array, x: jax.Array, t: jax.Array, training: bool = False) -> jax.Array:
        frequencies = self.param("frequencies", nn.initializers.normal(0.2), (self.time_dim // 2,))
        angles = 2 * jnp.pi * jnp.asarray(t)[..., None] * frequencies
        waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        time = MLP((128,), 128, activation=mish)(waves)
        time = jnp.broadcast_to(time, (*x.shape[:-1], 128))
        x = nn.Dense(self.width, kernel_init=fan_avg)(jnp.concatenate([x, observations, time], axis=-1))
        for _ in range(self.num_blocks):
            residual = nn.LayerNorm(use_fast_variance=False)(nn.Dropout(self.dropout, deterministic=not training)(x))
            residual = mish(nn.Dense(4 * self.width)(residual))
            x = x + nn.Dense(self.width)(residual)
        return nn.Dense(self.action_dim, kernel_init=fan_avg)(mish(x))


# ------------------------------------------------------------------------------------------------------------ diffusion


class Schedule(NamedTuple):
    """Constants of the T steps, (T,) each; t = 0 is the least noisy one."""

    betas: jax.Array  # variance that step t adds
    alphas: jax.Array  # 1 - betas
    alpha_bars: jax.Array  # product of the alphas up to t
    signal: jax.Array  # sqrt(alpha_bars): x_t = signal * action + noise * eps
    noise: jax.Array  # sqrt(1 - alpha_bars)


def make_schedule(num_steps: int) -> Schedule:
    """The constants for T = num_steps: beta_t = 1 - exp(-0.1 / T - 0.5 (10 - 0.1) (2t + 1) / T^2), called vp."""
    # NumPy's float64 up to the end: in float32, 1 - alpha_bar would lose four digits.
    steps = np.arange(num_steps)
    betas = 1 - np.exp(-0.1 / num_steps - 0.5 * (10 - 0.1) * (2 * steps + 1) / num_steps**2)
    alphas = 1 - betas
    bars = np.cumprod(alphas)
    constants = (betas, alphas, bars, np.sqrt(bars), np.sqrt(1 - bars))
    return Schedule(*(jnp.asarray(x, jnp.float32) for x in constants))


def diffuse(actions: jax.Array, eps: jax.Array, t: jax.Array, schedule: Schedule) -> jax.Array:
    """Actions (B, A) after the noise of steps 0 to t, in one go: sqrt(abar_t) a + sqrt(1 - abar_t) eps. t: (B,)."""
    return schedule.signal[t][:, None] * actions + schedule.noise[t][:, None] * eps


def reverse_step(
    x: jax.Array, eps: jax.Array, t: jax.Array, noise: jax.Array, schedule: Schedule, temperature: float
) -> jax.Array:
    """One step from x_t to x_{t-1}, (B, A) each (DDPM, algorithm 2, with the result clipped):
    (x_t - (1 - alpha_t) / sqrt(1 - abar_t) eps) / sqrt(alpha_t) + sqrt(beta_t) temperature noise.

    eps: the network's prediction; noise: standard normal, without effect at t = 0; t: a number.
    """
    mean = (x - schedule.betas[t] / schedule.noise[t] * eps) / jnp.sqrt(schedule.alphas[t])
    return jnp.clip(mean + (t > 0) * jnp.sqrt(schedule.betas[t]) * temperature * noise, -1, 1)


def reverse_chain(
    eps_fn: Callable, x: jax.Array, noise: jax.Array, schedule: Schedule, temperature: float
) -> jax.Array:
    """Actions in [-1, 1] from x_T ~ N(0, 1), (B, A), by T reverse steps.

    eps_fn(x (B, A), t) -> (B, A); noise: (T, B, A), standard normal, noise[t] for the step at t.
    """

    def step(x, inputs):
        t, noise = inputs
        return reverse_step(x, eps_fn(x, t), t, noise, schedule, temperature), None

    x, _ = jax.lax.scan(step, x, (jnp.arange(len(noise)), noise), reverse=True)
    return x


# --------------------------------------------------------------------------------------------------------------- critic


def expectile_loss(diff: jax.Array, expectile: float) -> jax.Array:
    """|expectile - 1(diff < 0)| diff^2, elementwise (IQL, arXiv 2110.06169, Eq. 5). diff: Q - V."""
    return jnp.where(diff > 0, expectile, 1 - expectile) * diff**2


def td_loss(q: jax.Array, next_v: jax.Array, rewards: jax.Array, masks: jax.Array, discount: float) -> jax.Array:
    """Squared TD error of two critics, target r + discount * m * V(s').

    q (2, B): Q_i(s, a); next_v (B,): V(s'); rewards, masks (B,). Returns a scalar, the mean over critics and batch.
    """
    target = jax.lax.stop_gradient(rewards + discount * masks * next_v)
    return jnp.mean((q - target) ** 2)


# ---------------------------------------------------------------------------------------------------------------- agent


class TrainState(NamedTuple):
    """All that training changes; a checkpoint is this tuple."""

    params: dict  # of actor, value and critic
    target_actor: dict
    target_critic: dict
    optimizer_state: dict  # of actor, value and critic, each has an Adam of its own
    key: jax.Array
    step: jax.Array


class Agent(NamedTuple):
    init: Callable  # (key) -> state
    update: Callable  # (state, batch) -> (state, metrics: name -> scalar)
    act: Callable  # (state, observations (B, S), key) -> actions (B, A) in [-1, 1]
    losses: dict[str, Callable]  # of the parameters of that name: (params, state, batch, key) -> (loss, metrics)


def make_agent(args: Args, observation_dim: int, action_dim: int) -> Agent:
    """The algorithm as pure functions. Numbers that only enter arithmetic (discount, ...) may be traced arrays."""
    schedule = make_schedule(args.diffusion_steps)
    actor = Actor(args.actor_width or args.hidden_dims[0], action_dim)
    value = Value(args.hidden_dims)
    critic = Critic(args.hidden_dims, activation=nn.relu, layer_norm=False)
    optimizers = {
        "actor": optax.adam(optax.cosine_decay_schedule(args.learning_rate, 2 * (args.steps + args.online_steps))),
        "value": optax.adam(args.learning_rate),
        "critic": optax.adam(args.learning_rate),
    }

    def init(key):
        key, actor_key, value_key, critic_key = jax.random.split(key, 4)
        observation, action = jnp.zeros(observation_dim), jnp.zeros(action_dim)
        params = {
            "actor": actor.init(actor_key, observation, action, 0),
            "value": value.init(value_key, observation),
            "critic": critic.init(critic_key, observation, action),
        }
        target_actor, target_critic = jax.tree.map(jnp.copy, (params["actor"], params["critic"]))
        optimizer_state = {name: optimizers[name].init(params[name]) for name in params}
        return TrainState(params, target_actor, target_critic, optimizer_state, key, jnp.int32(0))

    def sample_actions(actor_params, observations, key):
        x_key, noise_key = jax.random.split(key)
        x = jax.random.normal(x_key, (*observations.shape[:-1], action_dim))
        noise = jax.random.normal(noise_key, (args.diffusion_steps, *x.shape))

        def eps_fn(x, t):
            return actor.apply(actor_params, observations, x, t)

        return reverse_chain(eps_fn, x, noise, schedule, args.sampling_temperature)

    def actor_loss(actor_params, state, batch, key):
        t_key, eps_key, dropout_key = jax.random.split(key, 3)
        t = jax.random.randint(t_key, batch["rewards"].shape, 0, args.diffusion_steps)
        eps = jax.random.normal(eps_key, batch["actions"].shape)
        x = diffuse(batch["actions"], eps, t, schedule)
        predicted = actor.apply(actor_params, batch["observations"], x, t, training=True, rngs={"dropout": dropout_key})
        loss = jnp.mean(jnp.sum((predicted - eps) ** 2, axis=-1))
        return loss, {"losses/actor": loss}

    def value_loss(value_params, state, batch, _):
        q = critic.apply(state.target_critic, batch["observations"], batch["actions"]).min(axis=0)
        v = value.apply(value_params, batch["observations"])  # (B,)
        loss = expectile_loss(jax.lax.stop_gradient(q) - v, args.expectile).mean()
        return loss, {"losses/value": loss, "train/v_mean": v.mean()}

    def critic_loss(critic_params, state, batch, _):
        next_v = value.apply(state.params["value"], batch["next_observations"])
        q = critic.apply(critic_params, batch["observations"], batch["actions"])  # (2, B)
        loss = td_loss(q, next_v, batch["rewards"], batch["masks"], args.discount)
        return loss, {"losses/critic": loss, "train/q_mean": q.mean(), "train/q_min": q.min(), "train/q_max": q.max()}

    def gradient_step(state, name, grads):
        updates, optimizer_state = optimizers[name].update(grads, state.optimizer_state[name], state.params[name])
        params = optax.apply_updates(state.params[name], updates)
        return state._replace(
            params=state.params | {name: params}, optimizer_state=state.optimizer_state | {name: optimizer_state}
        )

    def update(state, batch):
        key, *actor_keys = jax.random.split(state.key, 3)
        half = len(batch["rewards"]) // 2
        for part, actor_key in zip((slice(half), slice(half, None)), actor_keys):
            half_batch = {name: x[part] for name, x in batch.items()}
            # Of the two steps the second one's metrics are logged.
            grads, actor_metrics = jax.grad(actor_loss, has_aux=True)(
                state.params["actor"], state, half_batch, actor_key
            )
            state = gradient_step(state, "actor", grads)
            target_actor = optax.incremental_update(state.params["actor"], state.target_actor, args.actor_target_rate)
            state = state._replace(target_actor=target_actor)

        batch = {name: x[: args.critic_batch_size] for name, x in batch.items()}
        grads, value_metrics = jax.grad(value_loss, has_aux=True)(state.params["value"], state, batch, None)
        state = gradient_step(state, "value", grads)
        # The critic is trained against the value after its step.
        grads, critic_metrics = jax.grad(critic_loss, has_aux=True)(state.params["critic"], state, batch, None)
        state = gradient_step(state, "critic", grads)

        target_critic = optax.incremental_update(state.params["critic"], state.target_critic, args.target_rate)
        state = state._replace(target_critic=target_critic, key=key, step=state.step + 1)
        return state, actor_metrics | value_metrics | critic_metrics

    def act(state, observations, key):
        repeated = jnp.repeat(observations[:, None], args.num_samples, axis=1)  # (B, K, S)
        actions = sample_actions(state.target_actor, repeated, key)  # (B, K, A)
        q = critic.apply(state.target_critic, repeated, actions).min(axis=0)
        choice = q.argmax(axis=-1)  # (B,)
        return actions[jnp.arange(len(choice)), choice]

    return Agent(init, update, act, {"actor": actor_loss, "value": value_loss, "critic": critic_loss})


# ------------------------------------------------------------------------------------------------------------- training


def train_chunk(
    agent: Agent, state: TrainState, buffer: ReplayBuffer, batch_size: int, num_updates: int
) -> tuple[TrainState, dict[str, jax.Array]]:
    """`num_updates` updates as one loop, each on a batch of its own. Returns the state after them and the mean of each
    metric."""

    def step(state):
        key, batch_key = jax.random.split(state.key)
        batch = sample(buffer, batch_key, batch_size)
        return agent.update(state._replace(key=key), batch)

    return repeat(step, state, num_updates)


# ------------------------------------------------------------------ cut here: above, the algorithm; below, a run of it

from pathlib import Path

from common.args import launch, preset_args
from common.buffers import make_buffer
from common.data import Dataset, load_dataset
from common.evaluation import Evaluator
from common.runs import Run
from common.seeds import place, side_by_side


def load(args: Args) -> Dataset:
    """The data and the environment: the one place to wrap, change or replace them, for training, playing and plots."""
    return load_dataset(
        args.env, args.task, args.data, args.data_dir, args.dataset, args.collect_episodes, args.p_random, args.rewards
    )


def main(args: Args) -> Path:
    """A whole run: data, agent, training with evaluations and checkpoints. Returns the run's directory."""
    dataset = load(args)

    def agent_of(args):
        return make_agent(args, dataset.observation_dim, dataset.action_dim)

    def train_interval(agent, state, buffer):
        return train_chunk(agent, state, buffer, args.batch_size, args.log_every)

    # All seeds, and all combinations of --grid, are one leading axis of the state; they share the dataset.
    init, train, act = side_by_side(args, agent_of, train_interval)
    playing = (args.eval_episodes, args.eval_workers, args.progress)
    with Run(args, dataset) as run, Evaluator(dataset.make_env, act, run.seeds, *playing, run.stopping) as evaluate:
        state, buffer = place(run.restore(init()), make_buffer(dataset.arrays))
        while True:
            if run.evaluation_due:
                run.log_evaluation(evaluate(state, run.step))
            if run.finished:
                return run.finish(state)
            if run.step >= args.steps and not run.online:
                from common.online import Online  # most runs do not need it

                run.online = train = Online(run, agent_of, act, state, buffer)
            state, metrics = train(state, buffer)
            run.log(metrics)
            if run.save_due:
                run.save(state)


# -------------------------------------------------------------------------------------------------------------- presets

# Chosen by --env; a flag on the command line wins. OGBench: as FQL's paper (arXiv 2502.02538, table 6 and appendix E.2)
# ran IDQL, the discount being FQL's; num_samples of antsoccer is that of a later paper with FQL's settings. 3M steps of
# the actor are 1.5M updates, and their last three evaluations, at 2.5M, 2.75M and 3M, are ours at 1.25M, 1.375M, 1.5M.
LONG = dict(num_samples=32, steps=1_500_000, eval_every=125_000)
LOCOMOTION = dict(hidden_dims=(512, 512), actor_width=256, expectile=0.7, **LONG)
MANIPULATION = dict(hidden_dims=(256, 256), expectile=0.9, discount=0.99, **LONG)
PRESETS = {
    "antmaze-large-navigate": dict(discount=0.99, **LOCOMOTION),
    "antmaze-giant-navigate": dict(discount=0.995, **LOCOMOTION),
    "humanoidmaze-medium-navigate": dict(discount=0.995, **LOCOMOTION),
    "humanoidmaze-large-navigate": dict(discount=0.995, **LOCOMOTION),
    "antsoccer-arena-navigate": dict(discount=0.995, **LOCOMOTION),
    "cube-single-play": MANIPULATION,
    "cube-double-play": MANIPULATION,
    "scene-play": MANIPULATION,
    "puzzle-3x3-play": MANIPULATION,
    "puzzle-4x4-play": MANIPULATION,
}

# D4RL, without versions. antmaze and locomotion: IDQL's paper, appendix E; adroit: FQL's paper as above. The authors'
# code trains on a random 95% of the data.
ROBOTS, ROBOT_DATA = ("halfcheetah", "hopper", "walker2d"), ("medium", "medium-replay", "medium-expert")
HANDS, HAND_DATA = ("pen", "door", "hammer", "relocate"), ("human", "cloned", "expert")
MAZES = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
ROBOT = LONG | dict(expectile=0.7, num_samples=128, rewards="returns_1000")
D4RL = {
    **{f"antmaze-{maze}": dict(expectile=0.9, **LONG) for maze in MAZES},
    **{f"{robot}-{data}": ROBOT for robot in ROBOTS for data in ROBOT_DATA},
    **{f"{hand}-{data}": dict(expectile=0.7, **LONG) for hand in HANDS for data in HAND_DATA},
}
D4RL["hammer-human"] |= dict(num_samples=128)
D4RL["relocate-cloned"] |= dict(num_samples=64)
PRESETS |= D4RL

# Ours, not the paper's: small problems for a laptop.
BANDIT = dict(
    hidden_dims=(64, 64), batch_size=128, critic_batch_size=64, learning_rate=1e-3,
    target_rate=0.02, actor_target_rate=0.01,
    steps=4_000, log_every=500, eval_every=1_000, save_every=1_000, eval_episodes=1_000,
)  # fmt: skip
POINTMAZE = dict(
    hidden_dims=(128, 128, 128), actor_width=64, batch_size=128, critic_batch_size=64, discount=0.995, target_rate=0.02,
    actor_target_rate=0.01, expectile=0.9, num_samples=8,  # the best of 64 by Q lies too often where there are no data
    steps=60_000, log_every=1_000, eval_every=20_000, save_every=20_000, collect_episodes=200,
)  # fmt: skip
PRESETS |= {"bandit": BANDIT, "bandit-corners": BANDIT, "pointmaze-medium-navigate": POINTMAZE}

# With --laptop, ours too: one size and batch in all five scripts, and one number of updates for a task. A first choice,
# made on seeds 100 to 104 (docs/lab-notes.md). Each of the actor's two steps takes 64 of the 128.
SMALL = dict(
    hidden_dims=(64, 64, 64), actor_width=64, batch_size=128, critic_batch_size=64, learning_rate=1e-3, steps=100_000,
    actor_target_rate=0.005, log_every=1_000, eval_every=10_000, save_every=10_000, data="collect",
)  # fmt: skip
POINT = dict(
    discount=0.995, learning_rate=3e-4, target_rate=0.02, expectile=0.9, num_samples=8,
    collect_episodes=200, p_random=0.4,
)  # fmt: skip
ARM = dict(steps=300_000, eval_every=30_000, save_every=30_000, discount=0.99)
LARGE = POINT | dict(steps=200_000, eval_every=20_000, save_every=20_000)
LAPTOP = {
    "pointmaze-medium-navigate": POINT,
    "pointmaze-large-navigate": LARGE,
    "scene-play": ARM | dict(collect_episodes=300, eval_every=60_000, save_every=60_000, expectile=0.9, num_samples=32),
    "cube-single-play": ARM | dict(collect_episodes=500, expectile=0.9, num_samples=32),
}
PRESETS |= {f"{env} laptop": SMALL | preset for env, preset in LAPTOP.items()}


def args_for(env: str, **changes: Any) -> Args:
    """The arguments that `--env` gives on the command line, with these changes: args_for("bandit", seed=1)."""
    return preset_args(Args, PRESETS, env, changes)


if __name__ == "__main__":
    launch(main, Args, PRESETS)
