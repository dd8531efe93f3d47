"""Many steps of Adam in one program: an objective, its batches, learning rates."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from resmerge_jax.models.decoder import Decoder

# Of a model, the same model without gradients, and a batch: the loss and what to record.
Objective = Callable[[Decoder, Decoder, Any], tuple[jax.Array, dict[str, jax.Array]]]
_CLIP = 1.0  # norm of the gradient


class Adam(NamedTuple):
  """Static settings; learning rates come with the batches.

  `bf16_weights` rounds the parameters after each step, as training in bfloat16 does:
  steps below half a unit in the last place change nothing.
  """

  beta2: float
  weight_decay: float = 0.0
  bf16_weights: bool = False

  def transform(self) -> optax.GradientTransformation:
    return optax.chain(
      optax.clip_by_global_norm(_CLIP),
      optax.scale_by_adam(b2=self.beta2),
      optax.add_decayed_weights(self.weight_decay),
    )


class Training(NamedTuple):
  """Parameters and the optimizer's state."""

  params: nnx.State
  moments: optax.OptState


def begin(params: nnx.State, adam: Adam) -> Training:
  # Copied: run_steps gives the buffers of what it is given to what it returns.
  params = jax.tree.map(jnp.copy, params)
  return Training(params, adam.transform().init(params))


def moved(
  training: Training, grads: nnx.State, rate: jax.Array, adam: Adam
) -> Training:
  """The training after one step along `grads`."""
  updates, moments = adam.transform().update(grads, training.moments, training.params)
  params = optax.apply_updates(
    training.params, jax.tree.map(lambda u: -rate * u, updates)
  )
  return Training(as_bf16(params) if adam.bf16_weights else params, moments)


def as_bf16(params: nnx.State) -> nnx.State:
  """Rounded to bfloat16, kept as float32."""
  return jax.tree.map(lambda x: jax.lax.reduce_precision(x, 8, 7), params)


def length(params: nnx.State, base: nnx.State) -> float:
  """Euclidean norm of all changes together."""
  parts = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), params, base)
  return float(jnp.sqrt(sum(jax.tree.leaves(parts))))


@functools.partial(
  jax.jit, static_argnames=('graph', 'objective', 'adam'), donate_argnums=0
)
def run_steps(
  training: Training,
  rates_S: jax.Array,
  batches: Any,
  *,
  graph: nnx.GraphDef,
  objective: Objective,
  adam: Adam,
) -> tuple[Training, dict[str, jax.Array]]:
  """One step per learning rate and entry of `batches` (leaves [S, ...]).

  Returns:
    The training after them, and what the objective records, [S] each.
  """

  def step(training: Training, xs: Any) -> tuple[Training, dict[str, jax.Array]]:
    rate, batch = xs

    def loss_of(params: nnx.State) -> tuple[jax.Array, dict[str, jax.Array]]:
      fixed = jax.lax.stop_gradient(training.params)
      return objective(nnx.merge(graph, params), nnx.merge(graph, fixed), batch)

    grads, record = jax.grad(loss_of, has_aux=True)(training.params)
    return moved(training, grads, rate, adam), record

  return jax.lax.scan(step, training, (rates_S, batches))
