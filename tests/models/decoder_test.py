"""Starting, training and padding a decoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from resmerge_jax.models.config import Llama3Scaling
from resmerge_jax.models.decoder import Decoder, parameters
from resmerge_jax.models.rope import frequencies
from tests.models import tiny

SHALLOW = dataclasses.replace(tiny.CONFIG, num_hidden_layers=1)


def test_start_is_that_of_transformers():
  model, again = (Decoder(tiny.FULL, nnx.Rngs(3)) for _ in range(2))
  for path, param in parameters(model).items():
    value = np.asarray(param[...])
    np.testing.assert_array_equal(value, parameters(again)[path][...])
    if path[-1] in ('bias', 'scale'):
      assert (value == (path[-1] == 'scale')).all(), path
    else:
      # The standard deviation of n numbers is known to about 1 / sqrt(2 n).
      assert abs(value.std() / 0.02 - 1) < 4 / np.sqrt(2 * value.size), path
  kernels = [layer.mlp.up.kernel[...] for layer in model.layers]
  assert not np.array_equal(*kernels)


def test_parameters_have_the_paths_that_others_rely_on():
  paths = {
    '.'.join(map(str, path)): param.shape
    for path, param in parameters(Decoder(tiny.FULL, None)).items()
  }
  assert paths['embed.embedding'] == (40, 16)
  assert paths['lm_head.kernel'] == (16, 40)
  assert paths['final_norm.scale'] == (16,)
  layer = {p.removeprefix('layers.1.'): s for p, s in paths.items() if 'layers.1' in p}
  assert layer == {
    'attn_norm.scale': (16,),
    'attn.q.kernel': (16, 4, 4),
    'attn.q.bias': (4, 4),
    'attn.k.kernel': (16, 2, 4),
    'attn.k.bias': (2, 4),
    'attn.v.kernel': (16, 2, 4),
    'attn.v.bias': (2, 4),
    'attn.o.kernel': (4, 4, 16),
    'attn.o.bias': (16,),
    'mlp_norm.scale': (16,),
    'mlp.gate.kernel': (16, 24),
    'mlp.gate.bias': (24,),
    'mlp.up.kernel': (16, 24),
    'mlp.up.bias': (24,),
    'mlp.down.kernel': (24, 16),
    'mlp.down.bias': (16,),
  }
  qwen3 = parameters(Decoder(tiny.QWEN3, None))
  assert qwen3['layers', 0, 'attn', 'q_norm', 'scale'].shape == (4,)
  assert ('lm_head', 'kernel') not in qwen3


@pytest.mark.parametrize('left', [True, False])
def test_padding_changes_nothing(left):
  model = tiny.decoder(tiny.QWEN3)
  real = slice(4, None) if left else slice(None, 8)
  mask = np.zeros((2, 12), bool)
  mask[:, real] = True
  whole = tiny.forward(model, np.ascontiguousarray(tiny.TOKENS[:, real]))
  padded = tiny.forward(model, tiny.TOKENS, mask)
  # Sums over more, masked, slots may be taken in another order.
  np.testing.assert_allclose(
    padded[:, real], whole, rtol=0, atol=1e-5 * abs(whole).max()
  )
  assert np.isfinite(padded).all()


def test_positions_are_relative_and_used():
  model = tiny.decoder()
  positions = np.broadcast_to(np.arange(12), (2, 12))
  plain = tiny.forward(model, tiny.TOKENS, None, positions)
  shifted = tiny.forward(model, tiny.TOKENS, None, positions + 9)
  stretched = tiny.forward(model, tiny.TOKENS, None, positions * 2)
  np.testing.assert_array_equal(plain, tiny.forward(model, tiny.TOKENS))
  scale = abs(plain).max()
  # Angles 9 radians larger have a rounding error of 5e-7 in float32.
  np.testing.assert_allclose(shifted, plain, rtol=0, atol=1e-5 * scale)
  assert abs(stretched - plain).max() > 1e-2 * scale


def test_llama3_scaling_keeps_short_and_stretches_long_wavelengths():
  scaling = Llama3Scaling(8.0, 1.0, 4.0, 64)
  long_heads = dataclasses.replace(tiny.FULL, head_dim=32, rope_scaling=scaling)
  plain = frequencies(dataclasses.replace(long_heads, rope_scaling=None))
  ratio = plain / frequencies(long_heads)
  assert ratio[0] == 1  # one turn in 6.3 positions, the bound is 64 / 4
  np.testing.assert_allclose(ratio[-8:], 8, rtol=1e-6)


def test_bfloat16_is_computed_with_float32_parameters():
  exact = tiny.forward(tiny.decoder(tiny.FULL, scale=0.1), tiny.TOKENS)
  model = tiny.decoder(tiny.FULL, scale=0.1, dtype=jnp.bfloat16)
  assert model.embed.embedding.dtype == jnp.float32
  got = tiny.forward(model, tiny.TOKENS)
  assert got.dtype == jnp.float32
  error = np.linalg.norm(got - exact) / np.linalg.norm(exact)
  # bfloat16 rounds to 2^-9; a dozen roundings in a row add up to less than a tenth.
  assert 1e-4 < error < 0.03


def test_training_on_a_mesh_lowers_the_loss():
  mesh = tiny.mesh(2, 2)

  def loss_of(model: Decoder, tokens: jax.Array) -> jax.Array:
    logits = model(tokens)[:, :-1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

  @nnx.jit
  def step(model: Decoder, optimizer: nnx.Optimizer, tokens: jax.Array) -> jax.Array:
    loss, grads = nnx.value_and_grad(loss_of)(model, tokens)
    optimizer.update(model, grads)
    return loss

  with jax.set_mesh(mesh):
    model = Decoder(SHALLOW, nnx.Rngs(0))
    state = nnx.state(model)
    nnx.update(model, jax.device_put(state, nnx.get_named_sharding(state, mesh)))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    losses = [float(step(model, optimizer, tiny.TOKENS)) for _ in range(20)]
  assert abs(losses[0] - np.log(40)) < 0.1  # knows nothing
  assert losses[-1] < 0.3 * losses[0]
  assert model.layers[0].mlp.up.kernel[...].sharding.spec == P('fsdp', 'tp')
