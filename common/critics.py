"""The networks that the scripts build on. What a critic is trained on stands in each script."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

fan_avg = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")  # Glorot uniform; biases start at zero


def mish(x: jax.Array) -> jax.Array:
    """x tanh(ln(1 + e^x)), elementwise (arXiv 1908.08681), from a single exponential, which is faster."""
    u = jnp.exp(jnp.minimum(x, 20.0))  # its square must not overflow; beyond 20 the fraction is 1
    n = u * (u + 2)
    return x * (n / (n + 2))


class MLP(nn.Module):
    """Dense, activation (GELU in its tanh form) and perhaps LayerNorm per hidden layer, then one dense layer. LayerNorm
    follows the activation, as in the authors' code (DriftQL's paper prints it before)."""

    hidden_dims: Sequence[int]
    output_dim: int
    layer_norm: bool = False
    activation: Callable = nn.gelu
    kernel_init: Callable = fan_avg

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for size in self.hidden_dims:
            x = self.activation(nn.Dense(size, kernel_init=self.kernel_init)(x))
            if self.layer_norm:  # the variance as mean((x - mean)^2) is more exact than its fast form
                x = nn.LayerNorm(use_fast_variance=False)(x)
        return nn.Dense(self.output_dim, kernel_init=self.kernel_init)(x)


class Critic(nn.Module):
    """Ensemble of Q(s, a): (..., S), (..., A) -> (num_critics, ...). Each member has its own parameters."""

    hidden_dims: Sequence[int]
    num_critics: int = 2
    layer_norm: bool = True
    activation: Callable = nn.gelu
    kernel_init: Callable = fan_avg

    @nn.compact
    def __call__(self, observations: jax.Array, actions: jax.Array) -> jax.Array:
        ensemble = nn.vmap(
            MLP, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=self.num_critics
        )
        inputs = jnp.concatenate([observations, actions], axis=-1)
        return ensemble(self.hidden_dims, 1, self.layer_norm, self.activation, self.kernel_init)(inputs).squeeze(-1)
