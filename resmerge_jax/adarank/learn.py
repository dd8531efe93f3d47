"""The relaxed merge, its objective, and one step of Adam on masks and coefficients.

merged = W_0 + sum_i lambda_i left_i diag(b_i) right_i per matrix and W_0 + sum_i
lambda_i D_i elsewhere; b = 1 where sigmoid(m / T) > 0.5, with the gradient of the
sigmoid (straight through). The authors minimise the entropy of each task's classifier;
a language model has none, and its nearest form is taken: the entropy of the
distribution of the next token. That is our adaptation, not the paper's.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from resmerge_jax.adarank.prompts import Batch
from resmerge_jax.models.decoder import Decoder, parameters, with_arrays
from resmerge_jax.models.hf_names import Place

TEMPERATURE = 10.0  # T; Adam undoes most of what it does to the gradient
KEPT, CUT = 0.1, -0.1  # m at the start
BETAS = 0.9, 0.999
Positions = Literal['all', 'last']


class Factors(NamedTuple):
  """D_i = left_i right_i, one column and row per singular component.

  The square one has orthonormal rows or columns, the other the singular values.
  """

  left_NxRxS: Any
  right_NxSxC: Any


class Known(NamedTuple):
  """float32 by Hugging Face name: the base, and Factors or differences [N, ...]."""

  base: Mapping[str, Any]
  updates: Mapping[str, Any]


class Learned(NamedTuple):
  """float32 by name: m of each matrix, lambda of each tensor that is merged."""

  m_NxS: Mapping[str, Any]
  lambda_N: Mapping[str, Any]


class Learning(NamedTuple):
  """What a step changes."""

  learned: Learned
  adam: Any


class Report(NamedTuple):
  """Of one batch, before its step: mean entropy in nats, share of components kept."""

  entropy_N: Any
  kept: Any


Step = Callable[[Learning, Known, Batch], tuple[Learning, Report]]


def start(
  updates: Mapping[str, Any], n: int, kept: Mapping[str, int], prior: float
) -> Learned:
  """m is 0.1 for the leading `kept` components of each matrix and -0.1 for the rest."""
  m_NxS = {}
  for name, count in kept.items():
    row_S = np.where(np.arange(_rank(updates[name])) < count, KEPT, CUT)
    m_NxS[name] = np.tile(row_S.astype(np.float32), (n, 1))
  return Learned(m_NxS, {name: np.full(n, prior, np.float32) for name in updates})


def straight_through(m: jax.Array) -> jax.Array:
  """1 where m > 0, else 0; its gradient is that of sigmoid(m / T)."""
  soft = jax.nn.sigmoid(m / TEMPERATURE)
  return (m > 0).astype(m.dtype) + (soft - jax.lax.stop_gradient(soft))


def merged(known: Known, learned: Learned) -> dict[str, jax.Array]:
  """float32 weights by name; tensors without an update are the base's."""
  weights = dict(known.base)
  for name, update in known.updates.items():
    lambda_N = learned.lambda_N[name]
    if isinstance(update, Factors):
      b_NxS = straight_through(learned.m_NxS[name]) * lambda_N[:, None]
      weights[name] += _product(update, b_NxS)
    else:
      weights[name] += jnp.einsum('n,n...->...', lambda_N, update, precision='highest')
  return weights


def _product(factors: Factors, b_NxS: jax.Array) -> jax.Array:
  """sum_i left_i diag(b_i) right_i; the smaller factor is the one that is scaled."""
  left_NxRxS, right_NxSxC = factors
  if left_NxRxS.size < right_NxSxC.size:
    left_NxRxS = left_NxRxS * b_NxS[:, None, :]
  else:
    right_NxSxC = right_NxSxC * b_NxS[:, :, None]
  return jnp.einsum('nrs,nsc->rc', left_NxRxS, right_NxSxC, precision='highest')


def entropies(model: Decoder, batch: Batch, positions: Positions) -> jax.Array:
  """Mean entropy of the next token per expert, [N], nats.

  `all`: after every token of a prompt, all tokens of an expert alike; `last`: after the
  whole prompt, where an answer begins.
  """
  n, b, t = batch.tokens_NxBxT.shape
  lengths_P = batch.lengths_NxB.reshape(n * b)
  mask_PxT = jnp.arange(t) < lengths_P[:, None]
  x_PxTxD, _ = model.hidden(batch.tokens_NxBxT.reshape(n * b, t), mask_PxT)
  if positions == 'last':
    x_PxTxD = jnp.take_along_axis(x_PxTxD, (lengths_P - 1)[:, None, None], axis=1)
    mask_PxT = jnp.ones((n * b, 1), bool)
  logp_PxTxV = jax.nn.log_softmax(model.logits(x_PxTxD))
  entropy_PxT = -(jnp.exp(logp_PxTxV) * logp_PxTxV).sum(-1)
  total_N = jnp.where(mask_PxT, entropy_PxT, 0.0).reshape(n, -1).sum(1)
  return total_N / mask_PxT.reshape(n, -1).sum(1)


def objective(
  learned: Learned,
  known: Known,
  batch: Batch,
  model: Decoder,
  places: tuple[Place, ...],
  positions: Positions,
) -> tuple[jax.Array, jax.Array]:
  """Sum over experts of their mean entropies, as the authors sum over tasks; and these."""
  weights = merged(known, learned)
  leaves = {
    p.path: weights[p.name].reshape(p.split).transpose(np.argsort(p.axes))
    for p in places
  }
  entropy_N = entropies(with_arrays(model, leaves), batch, positions)
  return entropy_N.sum(), entropy_N


def adam(learning_rate: float) -> optax.GradientTransformation:
  """As the authors' (torch.optim.Adam): no decay, no schedule."""
  return optax.adam(learning_rate, *BETAS)


def make_step(
  model: Decoder,
  places: tuple[Place, ...],
  positions: Positions,
  learning_rate: float,
) -> Step:
  """The function of one step, to be compiled; the report is of before it.

  `model` may be of shapes alone: `places` say which tensor each parameter is.
  """
  graph, shapes = nnx.split(model)
  assert {p.path for p in places} == parameters(model).keys()

  def step(learning: Learning, known: Known, batch: Batch) -> tuple[Learning, Report]:
    learned = learning.learned
    grads, entropy_N = jax.grad(objective, has_aux=True)(
      learned, known, batch, nnx.merge(graph, shapes), places, positions
    )
    change, state = adam(learning_rate).update(grads, learning.adam)
    masks = jax.tree.leaves(learned.m_NxS)
    kept = sum(jnp.sum(m > 0) for m in masks) / sum(m.size for m in masks)
    after = optax.apply_updates(learned, change)
    return Learning(after, state), Report(entropy_N, kept)

  return step


def _rank(factors: Factors) -> int:
  return factors.left_NxRxS.shape[-1]
