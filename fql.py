"""Flow Q-Learning (FQL), https://arxiv.org/abs/2502.02538, in one file.

    python fql.py --env pointmaze-medium-navigate              # a policy that works, minutes on a laptop
    python fql.py --env antmaze-large-navigate --num-seeds 8   # the benchmark, on a GPU
    python fql.py --help

Two networks make actions. A flow v(s, x, t) is trained on the data alone: it is the velocity that carries noise x at
t = 0 to actions at t = 1. The policy is one network, a = clip(mu(s, noise)): one forward pass, no integration. It is
trained
  1. to match the flow. For each state, noise z is carried to an action by `flow_steps` Euler steps of the flow, and
     mu(s, z) regresses onto that action. So mu takes the behaviour policy from the flow, not from single actions;
  2. to have a high Q. A plain deterministic policy gradient through the one pass, -mean Q(s, mu(s, noise)).
`alpha` weighs the first against the second. The flow gets no gradient from either. The critic is a pair of Q networks
with TD targets.

Paper and authors' code agree. Details that we take from the code, which made the published numbers:
  * the three squared errors are means over action dimensions;
  * networks apply GELU, then LayerNorm (critics only);
  * the TD target takes the mean or the minimum of the two critics per environment;
  * the policy is clipped for the critic and in the environment, but not in the distillation loss;
  * the target network moves towards the critic as it was before the gradient step.
Different from the authors' code: the dataset lives on the device and `log_every` updates run in one compiled program.

Protocol: 50 episodes every 100k updates, actions sampled once and clipped, score = mean success of the last three
evaluations (D4RL: normalized return of the last). The algorithm stands above the line "cut here"; below is a run of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.args import BaseArgs
from common.buffers import ReplayBuffer, repeat, sample
from common.critics import MLP, Critic

# ------------------------------------------------------------------------------------------------------------ arguments


@dataclass(frozen=True)
class Args(BaseArgs):
    batch_size: int = 256
    """transitions per update"""
    learning_rate: float = 3e-4
    """of Adam, for actor and critic"""
    lr_decay: bool = False
    """let the learning rate fall to 0 over all steps, as half a cosine; the paper's is constant"""
    discount: float = 0.99
    """gamma of the TD target"""
    target_rate: float = 0.005
    """share of the way towards the critic that the target critic moves per update"""
    hidden_dims: tuple[int, ...] = (512, 512, 512, 512)
    """widths of the hidden layers, in actor and critic"""
    q_agg: Literal["mean", "min"] = "mean"
    """how the TD target joins the two critics"""
    alpha: float = 10.0
    """weight of the distillation loss against Q (alpha in the paper); the one to tune: 10 to 1000 on OGBench"""
    flow_steps: int = 10
    """Euler steps by which the flow carries noise to an action"""
    normalize_q: bool = False
    """divide the Q loss by the mean |Q| of the batch, so that alpha does not depend on the scale of the rewards"""


# ------------------------------------------------------------------------------------------------------------- networks


class Actor(MLP):
    """mu(s, noise) -> action, not clipped: an MLP without LayerNorm on the two inputs side by side."""

    def __call__(self, observations: jax.Array, noise: jax.Array) -> jax.Array:
        return super().__call__(jnp.concatenate([observations, noise], axis=-1))


class Flow(MLP):
    """v(s, x, t) -> velocity at the point x and time t (..., 1): the same network with three inputs side by side."""

    def __call__(self, observations: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
        return super().__call__(jnp.concatenate([observations, x, t], axis=-1))


# ----------------------------------------------------------------------------------------------------------------- flow


def interpolate(noise: jax.Array, actions: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The straight path x_t = (1 - t) x_0 + t x_1 from noise x_0 to the dataset's actions x_1, and its velocity.

    noise, actions: (B, A); t: (B, 1) in [0, 1]. Returns (x_t, velocity), each (B, A); the velocity is x_1 - x_0.
    """
    return (1 - t) * noise + t * actions, actions - noise


def integrate_flow(
    velocity_fn: Callable[[jax.Array, jax.Array], jax.Array], noise: jax.Array, num_steps: int
) -> jax.Array:
    """Carries noise to actions with `num_steps` Euler steps: x <- x + v(x, i / num_steps) / num_steps.

    velocity_fn(x (B, A), t (B, 1)) -> (B, A); noise: (B, A). Returns (B, A), clipped to [-1, 1] at the end only.
    """
    x = noise
    for i in range(num_steps):
        t = jnp.full((*x.shape[:-1], 1), i / num_steps)
        x = x + velocity_fn(x, t) / num_steps
    return jnp.clip(x, -1, 1)


# --------------------------------------------------------------------------------------------------------------- critic


def td_loss(
    q: jax.Array, next_q: jax.Array, rewards: jax.Array, masks: jax.Array, discount: float, q_agg: str
) -> jax.Array:
    """Squared TD error of an ensemble of E critics, target r + discount * m * agg_i Q_i(s', a').

    q (E, B): Q_i(s, a); next_q (E, B): target critics at (s', a'), a' one sample of the policy; rewards, masks (B,).
    Returns a scalar, the mean over ensemble and batch.
    """
    next_value = next_q.min(axis=0) if q_agg == "min" else next_q.mean(axis=0)
    target = jax.lax.stop_gradient(rewards + discount * masks * next_value)
    return jnp.mean((q - target) ** 2)


# ---------------------------------------------------------------------------------------------------------------- agent


class TrainState(NamedTuple):
    """All that training changes; a checkpoint is this tuple."""

    params: dict  # of actor and critic, trained by one Adam
    target_critic: dict
    optimizer_state: optax.OptState
    key: jax.Array
    step: jax.Array


class Agent(NamedTuple):
    init: Callable  # (key) -> state
    update: Callable  # (state, batch) -> (state, metrics: name -> scalar)
    act: Callable  # (state, observations (B, S), key) -> actions (B, A) in [-1, 1]
    losses: dict[str, Callable]  # of the parameters of that name: (params, state, batch, key) -> (loss, metrics)


def make_agent(args: Args, observation_dim: int, action_dim: int) -> Agent:
    """The algorithm as pure functions. Numbers that only enter arithmetic (discount, ...) may be traced arrays."""
    actor = Actor(args.hidden_dims, action_dim)
    flow = Flow(args.hidden_dims, action_dim)
    critic = Critic(args.hidden_dims)
    decay = optax.cosine_decay_schedule(args.learning_rate, args.steps + args.online_steps)
    optimizer = optax.adam(decay if args.lr_decay else args.learning_rate)

    def init(key):
        key, actor_key, flow_key, critic_key = jax.random.split(key, 4)
        observation, action, time = jnp.zeros(observation_dim), jnp.zeros(action_dim), jnp.zeros(1)
        params = {
            "actor": {
                "one_step": actor.init(actor_key, observation, action),
                "flow": flow.init(flow_key, observation, action, time),
            },
            "critic": critic.init(critic_key, observation, action),
        }
        target_critic = jax.tree.map(jnp.copy, params["critic"])
        return TrainState(params, target_critic, optimizer.init(params), key, jnp.int32(0))

    def sample_actions(actor_params, observations, key):
        noise = jax.random.normal(key, (*observations.shape[:-1], action_dim))
        return jnp.clip(actor.apply(actor_params["one_step"], observations, noise), -1, 1)

    def critic_loss(critic_params, state, batch, key):
        next_actions = sample_actions(state.params["actor"], batch["next_observations"], key)
        next_q = critic.apply(state.target_critic, batch["next_observations"], next_actions)
        q = critic.apply(critic_params, batch["observations"], batch["actions"])  # (2, B)
        loss = td_loss(q, next_q, batch["rewards"], batch["masks"], args.discount, args.q_agg)
        return loss, {"losses/critic": loss, "train/q_mean": q.mean(), "train/q_min": q.min(), "train/q_max": q.max()}

    def actor_loss(actor_params, state, batch, key):
        flow_noise_key, time_key, noise_key = jax.random.split(key, 3)

        # Behaviour: the flow learns the velocity from noise to the data.
        noise = jax.random.normal(flow_noise_key, batch["actions"].shape)
        t = jax.random.uniform(time_key, (len(noise), 1))
        x_t, velocity = interpolate(noise, batch["actions"], t)
        flow_loss = jnp.mean((flow.apply(actor_params["flow"], batch["observations"], x_t, t) - velocity) ** 2)

        # Distillation: from the same noise, the policy goes in one pass to where the flow goes in many. The flow is a
        # constant here.
        def velocity_fn(x, t):
            return flow.apply(state.params["actor"]["flow"], batch["observations"], x, t)

        noise = jax.random.normal(noise_key, batch["actions"].shape)
        target = jax.lax.stop_gradient(integrate_flow(velocity_fn, noise, args.flow_steps))
        actions = actor.apply(actor_params["one_step"], batch["observations"], noise)  # (B, A), not clipped
        distill_loss = jnp.mean((actions - target) ** 2)

        # Improvement: the mean of the critics at the same actions; their parameters are constants here.
        q = critic.apply(state.params["critic"], batch["observations"], jnp.clip(actions, -1, 1)).mean(axis=0)
        q_loss = -q.mean()
        if args.normalize_q:
            q_loss = q_loss / jax.lax.stop_gradient(jnp.abs(q).mean())

        loss = flow_loss + args.alpha * distill_loss + q_loss
        return loss, {
            "losses/actor": loss, "losses/flow": flow_loss, "losses/distill": distill_loss, "losses/q": q_loss,
        }  # fmt: skip

    def update(state, batch):
        key, critic_key, actor_key = jax.random.split(state.key, 3)
        critic_grads, critic_metrics = jax.grad(critic_loss, has_aux=True)(
            state.params["critic"], state, batch, critic_key
        )
        actor_grads, actor_metrics = jax.grad(actor_loss, has_aux=True)(state.params["actor"], state, batch, actor_key)

        grads = {"actor": actor_grads, "critic": critic_grads}
        updates, optimizer_state = optimizer.update(grads, state.optimizer_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # Towards the critic before this step (state.params, not params).
        target_critic = optax.incremental_update(state.params["critic"], state.target_critic, args.target_rate)
        return TrainState(params, target_critic, optimizer_state, key, state.step + 1), critic_metrics | actor_metrics

    def act(state, observations, key):
        return sample_actions(state.params["actor"], observations, key)

    return Agent(init, update, act, {"critic": critic_loss, "actor": actor_loss})


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

# Chosen by --env; a flag on the command line wins. The commands in the README of the authors' code (commit 719d044).
PRESETS = {
    "antmaze-large-navigate": dict(alpha=10, discount=0.99, q_agg="min"),
    "antmaze-giant-navigate": dict(alpha=10, discount=0.995, q_agg="min"),
    "humanoidmaze-medium-navigate": dict(alpha=30, discount=0.995, q_agg="mean"),
    "humanoidmaze-large-navigate": dict(alpha=30, discount=0.995, q_agg="mean"),
    "antsoccer-arena-navigate": dict(alpha=10, discount=0.995, q_agg="mean"),
    "cube-single-play": dict(alpha=300, discount=0.99, q_agg="mean"),
    "cube-double-play": dict(alpha=300, discount=0.99, q_agg="mean"),
    "scene-play": dict(alpha=300, discount=0.99, q_agg="mean"),
    "puzzle-3x3-play": dict(alpha=1000, discount=0.99, q_agg="mean"),
    "puzzle-4x4-play": dict(alpha=1000, discount=0.99, q_agg="mean"),
}

# D4RL, without versions: the same source.
D4RL = {
    "antmaze-umaze": dict(alpha=10, discount=0.99, q_agg="mean"),
    "antmaze-umaze-diverse": dict(alpha=10, discount=0.99, q_agg="mean"),
    "antmaze-medium-play": dict(alpha=10, discount=0.99, q_agg="mean"),
    "antmaze-medium-diverse": dict(alpha=10, discount=0.99, q_agg="mean"),
    "antmaze-large-play": dict(alpha=3, discount=0.99, q_agg="mean"),
    "antmaze-large-diverse": dict(alpha=3, discount=0.99, q_agg="mean"),
    "pen-human": dict(alpha=10_000, discount=0.99, q_agg="min"),
    "pen-cloned": dict(alpha=10_000, discount=0.99, q_agg="min"),
    "pen-expert": dict(alpha=3_000, discount=0.99, q_agg="min"),
    "door-human": dict(alpha=30_000, discount=0.99, q_agg="min"),
    "door-cloned": dict(alpha=30_000, discount=0.99, q_agg="min"),
    "door-expert": dict(alpha=30_000, discount=0.99, q_agg="min"),
    "hammer-human": dict(alpha=30_000, discount=0.99, q_agg="min"),
    "hammer-cloned": dict(alpha=10_000, discount=0.99, q_agg="min"),
    "hammer-expert": dict(alpha=30_000, discount=0.99, q_agg="min"),
    "relocate-human": dict(alpha=10_000, discount=0.99, q_agg="min"),
    "relocate-cloned": dict(alpha=30_000, discount=0.99, q_agg="min"),
    "relocate-expert": dict(alpha=30_000, discount=0.99, q_agg="min"),
}
PRESETS |= {env: preset | dict(steps=500_000) for env, preset in D4RL.items()}

# What differs where --online-steps is given (the paper's Tables 4 and 7): as many steps before as in the online phase.
ONLINE = {"humanoidmaze-medium-navigate": dict(alpha=100), "antsoccer-arena-navigate": dict(alpha=30)}
ONLINE |= {env: dict(steps=1_000_000) for env in D4RL if env.startswith("antmaze")}
ONLINE |= {f"{hand}-cloned": dict(alpha=1_000, steps=1_000_000) for hand in ("pen", "door", "hammer")}
ONLINE |= {"relocate-cloned": dict(alpha=10_000, steps=1_000_000)}
PRESETS |= {f"{env} online": preset for env, preset in ONLINE.items()}

# Ours, not the paper's: small problems for a laptop.
BANDIT = dict(
    hidden_dims=(64, 64, 64), batch_size=64, learning_rate=1e-3, alpha=1,
    steps=4_000, log_every=500, eval_every=1_000, save_every=1_000, eval_episodes=1_000,
)  # fmt: skip
POINTMAZE = dict(
    hidden_dims=(64, 64, 64), batch_size=64, discount=0.995, target_rate=0.02, q_agg="min", alpha=0.5,
    steps=80_000, log_every=1_000, eval_every=5_000, save_every=20_000, collect_episodes=200,
)  # fmt: skip
PRESETS |= {"bandit": BANDIT, "bandit-corners": BANDIT, "pointmaze-medium-navigate": POINTMAZE}

# With --laptop, ours too: one size and batch in all five scripts, and one number of updates for a task. A first choice,
# made on seeds 100 to 104 (docs/lab-notes.md).
SMALL = dict(
    hidden_dims=(64, 64, 64), batch_size=64, learning_rate=1e-3, lr_decay=True, steps=100_000,
    log_every=1_000, eval_every=10_000, save_every=10_000, data="collect",
)  # fmt: skip
POINT = dict(
    discount=0.995, learning_rate=3e-4, lr_decay=False, target_rate=0.02, q_agg="min", alpha=0.5,
    collect_episodes=200, p_random=0.4,
)  # fmt: skip
ARM = dict(steps=300_000, eval_every=30_000, save_every=30_000, discount=0.99)
LARGE = POINT | dict(steps=200_000, eval_every=20_000, save_every=20_000)
LAPTOP = {
    "pointmaze-medium-navigate": POINT,
    "pointmaze-large-navigate": LARGE,
    "scene-play": ARM | dict(collect_episodes=300, eval_every=60_000, save_every=60_000, discount=0.98, alpha=500),
    "cube-single-play": ARM | dict(collect_episodes=500, discount=0.97, learning_rate=2e-3, alpha=100),
}
PRESETS |= {f"{env} laptop": SMALL | preset for env, preset in LAPTOP.items()}


def args_for(env: str, **changes: Any) -> Args:
    """The arguments that `--env` gives on the command line, with these changes: args_for("bandit", seed=1)."""
    return preset_args(Args, PRESETS, env, changes)


if __name__ == "__main__":
    launch(main, Args, PRESETS)
