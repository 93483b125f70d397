"""DROL, https://arxiv.org/abs/2604.22229, in one file.

    python drol.py --env pointmaze-medium-navigate              # a policy that works, minutes on a laptop
    python drol.py --env antmaze-large-navigate --num-seeds 8   # the benchmark, on a GPU
    python drol.py --help

The policy is one network, a = clip(f(s, latent)): one forward pass, no diffusion steps, no distillation. The latent is
uniform in a ball. For each state of a batch, K candidate actions are drawn from f, and the one nearest to the dataset's
action is the winner (the data are routed to it). The winner alone is trained
  1. to match the dataset's action, by regression. Because the other candidates stay where they are, f can keep actions
     far from this one for other latents, and so several modes;
  2. to have a high Q. A plain deterministic policy gradient, -mean Q(s, winner), divided by the mean |Q|.
`bc_coef` weighs the first against the second. The critic is a pair of Q networks with TD targets.

Details that we take from the authors' code (commit 7e669b0), which made the published numbers:
  * the distance to the dataset's action is a mean over action dimensions;
  * the Q loss takes the minimum of the two critics and is normalised;
  * networks apply GELU, then LayerNorm (critics only);
  * the TD target takes the mean or the minimum of the two critics per environment;
  * the target network moves towards the critic as it was before the gradient step.
Different from the authors' code: the latents are exactly uniform in the ball (theirs add 1e-6 under the root of the
norm and 1e-8 to the dimension in the exponent); the critic, and everything that needs a gradient, is evaluated for the
winners only (the result is the same); the dataset lives on the device and `log_every` updates run in one compiled
program.

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
    bc_coef: float = 1.0
    """weight of the winner's distance to the data against Q; the one to tune: 0.03 to 10 on OGBench"""
    q_coef: float = 1.0
    """weight of the normalised Q loss"""
    num_candidates: int = 16
    """actions drawn per state, of which the nearest to the dataset's is trained (K)"""


# ------------------------------------------------------------------------------------------------------------- networks


class Actor(MLP):
    """f(s, latent) -> action, not clipped: an MLP without LayerNorm on the two inputs side by side."""

    def __call__(self, observations: jax.Array, latents: jax.Array) -> jax.Array:
        return super().__call__(jnp.concatenate([observations, latents], axis=-1))


# -------------------------------------------------------------------------------------------------------------- routing


def sample_latents(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Latents of the given shape (..., A), uniform in the ball of radius sqrt(A): the direction of a normal vector,
    radius sqrt(A) u^(1/A) with u uniform in [0, 1]."""
    direction_key, radius_key = jax.random.split(key)
    dim = shape[-1]
    direction = jax.random.normal(direction_key, shape)
    # In one dimension float32 normals are exactly 0 now and then.
    direction /= jnp.maximum(jnp.linalg.norm(direction, axis=-1, keepdims=True), 1e-12)
    radius = jnp.sqrt(dim) * jax.random.uniform(radius_key, (*shape[:-1], 1)) ** (1 / dim)
    return radius * direction


def route(candidates: jax.Array, actions: jax.Array) -> jax.Array:
    """The winner of each state: the candidate nearest to the dataset's action; of equally near ones, the first.

    candidates: (B, K, A); actions: (B, A). Returns indices (B,).
    """
    distances = jnp.sum((candidates - actions[:, None]) ** 2, axis=-1)  # (B, K)
    return jnp.argmin(distances, axis=-1)


def routed_loss(
    winners: jax.Array, actions: jax.Array, q: jax.Array, bc_coef: float, q_coef: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Regression of the winners onto the dataset's actions, less their Q values, divided by the batch's mean |Q|.

    winners: (B, A) in [-1, 1]; actions: (B, A); q (E, B): Q_i(s, winner). Returns a scalar, of means over the batch (of
    the regression over action dimensions too), and its parts.
    """
    bc_loss = jnp.mean((winners - actions) ** 2)

    q = q.min(axis=0)  # (B,)
    scale = jax.lax.stop_gradient(1 / jnp.maximum(jnp.abs(q).mean(), 1e-6))
    q_loss = -scale * q.mean()

    loss = bc_coef * bc_loss + q_coef * q_loss
    return loss, {"losses/actor": loss, "losses/bc": bc_loss, "losses/q": q_loss}


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
    critic = Critic(args.hidden_dims)
    decay = optax.cosine_decay_schedule(args.learning_rate, args.steps + args.online_steps)
    optimizer = optax.adam(decay if args.lr_decay else args.learning_rate)

    def init(key):
        key, actor_key, critic_key = jax.random.split(key, 3)
        observation, action = jnp.zeros(observation_dim), jnp.zeros(action_dim)
        params = {
            "actor": actor.init(actor_key, observation, action),
            "critic": critic.init(critic_key, observation, action),
        }
        target_critic = jax.tree.map(jnp.copy, params["critic"])
        return TrainState(params, target_critic, optimizer.init(params), key, jnp.int32(0))

    def sample_actions(actor_params, observations, key):
        latents = sample_latents(key, (*observations.shape[:-1], action_dim))
        return jnp.clip(actor.apply(actor_params, observations, latents), -1, 1)

    def critic_loss(critic_params, state, batch, key):
        next_actions = sample_actions(state.params["actor"], batch["next_observations"], key)
        next_q = critic.apply(state.target_critic, batch["next_observations"], next_actions)
        q = critic.apply(critic_params, batch["observations"], batch["actions"])  # (2, B)
        loss = td_loss(q, next_q, batch["rewards"], batch["masks"], args.discount, args.q_agg)
        return loss, {"losses/critic": loss, "train/q_mean": q.mean(), "train/q_min": q.min(), "train/q_max": q.max()}

    def actor_loss(actor_params, state, batch, key):
        # Routing: to find the winner, all candidates are needed, but no gradient and no critic.
        latents = sample_latents(key, (len(batch["actions"]), args.num_candidates, action_dim))
        repeated = jnp.repeat(batch["observations"][:, None], args.num_candidates, axis=1)  # (B, K, S)
        candidates = jnp.clip(actor.apply(state.params["actor"], repeated, latents), -1, 1)  # (B, K, A)
        winner = route(candidates, batch["actions"])  # (B,)

        # Behaviour and improvement: the winner once more, now with gradient; the other candidates get none. The
        # parameters of the critics are constants here.
        latents = latents[jnp.arange(len(winner)), winner]  # (B, A)
        winners = jnp.clip(actor.apply(actor_params, batch["observations"], latents), -1, 1)
        q = critic.apply(state.params["critic"], batch["observations"], winners)  # (2, B)
        loss, metrics = routed_loss(winners, batch["actions"], q, args.bc_coef, args.q_coef)
        return loss, metrics | {"train/spread": candidates.std(axis=1).mean()}  # 0 is a policy without its noise

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

# Chosen by --env; a flag on the command line wins. The commands of DROL(16), K = 16 everywhere, in the authors' code
# (scripts/production_run_commands.sh, commit 7e669b0). The comments: what DROL*, tuned per environment, takes instead.
PRESETS = {
    "antmaze-large-navigate": dict(bc_coef=0.03, discount=0.995, q_agg="min"),  # K=16
    "antmaze-giant-navigate": dict(bc_coef=0.03, discount=0.995, q_agg="min"),  # K=1
    "humanoidmaze-medium-navigate": dict(bc_coef=0.3, discount=0.995, q_agg="mean"),  # K=16
    "humanoidmaze-large-navigate": dict(bc_coef=0.3, discount=0.995, q_agg="mean"),  # K=4
    "antsoccer-arena-navigate": dict(bc_coef=0.1, discount=0.995, q_agg="mean"),  # K=4
    "cube-single-play": dict(bc_coef=10, discount=0.99, q_agg="mean"),  # K=16
    "cube-double-play": dict(bc_coef=3, discount=0.99, q_agg="mean"),  # K=64
    "scene-play": dict(bc_coef=3, discount=0.99, q_agg="mean"),  # K=64
    "puzzle-3x3-play": dict(bc_coef=0.3, discount=0.99, q_agg="mean"),  # K=32
    "puzzle-4x4-play": dict(bc_coef=10, discount=0.99, q_agg="mean"),  # K=64
}

# D4RL, without versions: the same source.
D4RL = {
    "antmaze-umaze": dict(bc_coef=0.3, discount=0.99, q_agg="mean"),  # K=2
    "antmaze-umaze-diverse": dict(bc_coef=0.1, discount=0.99, q_agg="mean"),  # K=16
    "antmaze-medium-play": dict(bc_coef=0.1, discount=0.99, q_agg="mean"),  # K=32
    "antmaze-medium-diverse": dict(bc_coef=0.1, discount=0.99, q_agg="mean"),  # K=16
    "antmaze-large-play": dict(bc_coef=0.1, discount=0.99, q_agg="mean"),  # K=16, bc_coef=0.03
    "antmaze-large-diverse": dict(bc_coef=0.1, discount=0.99, q_agg="mean"),  # K=16, bc_coef=0.03
    "pen-human": dict(bc_coef=1, discount=0.99, q_agg="min"),  # K=16
    "pen-cloned": dict(bc_coef=1, discount=0.99, q_agg="min"),  # K=16
    "pen-expert": dict(bc_coef=1, discount=0.99, q_agg="min"),  # K=16
    "door-human": dict(bc_coef=10, discount=0.99, q_agg="min"),  # K=8
    "door-cloned": dict(bc_coef=10, discount=0.99, q_agg="min"),  # K=8
    "door-expert": dict(bc_coef=10, discount=0.99, q_agg="min"),  # K=8
    "hammer-human": dict(bc_coef=3, discount=0.99, q_agg="min"),  # K=8
    "hammer-cloned": dict(bc_coef=3, discount=0.99, q_agg="min"),  # K=8
    "hammer-expert": dict(bc_coef=3, discount=0.99, q_agg="min"),  # K=8
    "relocate-human": dict(bc_coef=10, discount=0.99, q_agg="min"),  # K=32
    "relocate-cloned": dict(bc_coef=10, discount=0.99, q_agg="min"),  # K=32
    "relocate-expert": dict(bc_coef=10, discount=0.99, q_agg="min"),  # K=32
}
PRESETS |= {env: preset | dict(steps=500_000) for env, preset in D4RL.items()}

# Ours, not the paper's: small problems for a laptop. At bc_coef 3 the policy keeps the bandit's worse modes too, and
# at 4,000 updates some seeds are still on their way.
BANDIT = dict(
    hidden_dims=(64, 64, 64), batch_size=64, learning_rate=1e-3, bc_coef=1.5,
    steps=6_000, log_every=500, eval_every=1_000, save_every=1_000, eval_episodes=1_000,
)  # fmt: skip
POINTMAZE = dict(
    hidden_dims=(64, 64, 64), batch_size=64, discount=0.995, target_rate=0.02, q_agg="min", bc_coef=0.1,
    steps=100_000, log_every=1_000, eval_every=10_000, save_every=20_000, collect_episodes=200,
)  # fmt: skip
PRESETS |= {"bandit": BANDIT, "bandit-corners": BANDIT | dict(steps=4_000), "pointmaze-medium-navigate": POINTMAZE}

# With --laptop, ours too: one size and batch in all five scripts, and one number of updates for a task. A first choice,
# made on seeds 100 to 104 (docs/lab-notes.md).
SMALL = dict(
    hidden_dims=(64, 64, 64), batch_size=64, learning_rate=1e-3, lr_decay=True, steps=100_000,
    log_every=1_000, eval_every=10_000, save_every=10_000, data="collect",
)  # fmt: skip
POINT = dict(
    discount=0.995, learning_rate=3e-4, lr_decay=False, target_rate=0.02, q_agg="min", bc_coef=0.1,
    collect_episodes=200, p_random=0.4,
)  # fmt: skip
ARM = dict(steps=300_000, eval_every=30_000, save_every=30_000, discount=0.99)
LARGE = POINT | dict(steps=200_000, eval_every=20_000, save_every=20_000)
LAPTOP = {
    "pointmaze-medium-navigate": POINT,
    "pointmaze-large-navigate": LARGE | dict(bc_coef=0.03, lr_decay=True),
    "scene-play": ARM | dict(collect_episodes=300, eval_every=60_000, save_every=60_000, discount=0.98, bc_coef=3),
    "cube-single-play": ARM | dict(collect_episodes=500, bc_coef=10),
}
PRESETS |= {f"{env} laptop": SMALL | preset for env, preset in LAPTOP.items()}


def args_for(env: str, **changes: Any) -> Args:
    """The arguments that `--env` gives on the command line, with these changes: args_for("bandit", seed=1)."""
    return preset_args(Args, PRESETS, env, changes)


if __name__ == "__main__":
    launch(main, Args, PRESETS)
