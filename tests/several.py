"""A small group with every kind of step that a mesh or several processes may cut."""

import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from resmerge_jax.checkpoint.format import read_header
from resmerge_jax.plan.step_sizes import PROCESS_BYTES
from tests import groups
from tests.spectra import spectrum_matrix

BF16 = ml_dtypes.bfloat16
LAYERS, ROWS, COLS, THIN_ROWS, VOCAB = 3, 96, 80, 24, 1055
N_EXPERTS = 2
CLOSE = 'model.layers.1.mlp.up_proj.weight'  # its head needs float64
# Blocks of rows of the embedding, a layer or two of the rest in a step, several files.
SETTINGS: dict[str, Any] = {
  'memory_budget': PROCESS_BYTES + 1_000_000,
  'max_shard_size': '60kB',
}


def write_group(path: pathlib.Path) -> groups.Group:
  base = _base()
  return groups.write(
    path,
    base,
    [_expert(base, seed) for seed in range(1, 1 + N_EXPERTS)],
    tie_word_embeddings=False,
  )


def assert_agree(
  got: Mapping[str, np.ndarray],
  want: Mapping[str, np.ndarray],
  base: Mapping[str, np.ndarray],
) -> None:
  """Two merges on different meshes: the same but for rounding.

  bfloat16: under 0.1 % of the entries differ, each by at most one unit at the largest
  of the three magnitudes. float32: by what summing in another order makes.
  """
  assert got.keys() == want.keys()
  n_differing = n_entries = 0
  for name, a in got.items():
    b = want[name]
    assert (a.dtype, a.shape) == (b.dtype, b.shape), name
    if a.dtype == np.int64:
      np.testing.assert_array_equal(a, b, err_msg=name)
      continue
    a, b, w = (x.astype(np.float64) for x in (a, b, base[name]))
    error, size = np.abs(a - b), np.maximum(np.maximum(np.abs(a), np.abs(b)), np.abs(w))
    if got[name].dtype == BF16:
      unit = 2.0 ** (np.frexp(size)[1] - 8)
      assert (error <= unit).all(), f'{name}: off by {(error / unit).max()} units'
    else:
      assert error.max() <= 1e-6 * size.max(), name
    n_differing, n_entries = n_differing + np.count_nonzero(error), n_entries + a.size
  if any(x.dtype == BF16 for x in got.values()):
    assert n_differing < 1e-3 * n_entries


def _base() -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)

  def normal(*shape: int) -> np.ndarray:
    return (0.02 * rng.standard_normal(shape)).astype(BF16)

  found = {'model.embed_tokens.weight': normal(VOCAB, COLS)}
  for layer in range(LAYERS):
    at = f'model.layers.{layer}'
    found |= {
      f'{at}.input_layernorm.weight': normal(COLS),
      f'{at}.self_attn.k_proj.weight': normal(THIN_ROWS, COLS),
      f'{at}.mlp.up_proj.bias': normal(COLS),
      f'{at}.mlp.up_proj.weight': normal(ROWS, COLS),
    }
  found['lm_head.weight'] = normal(VOCAB, COLS)
  found['model.position_ids'] = np.arange(7, dtype=np.int64)
  return found


def _expert(base: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
  """The base and an update whose singular values fall off; in CLOSE two are near."""
  rng = np.random.default_rng(seed)
  found = {}
  for name, value in base.items():
    if value.dtype != BF16:
      found[name] = value
      continue
    wide = value.astype(np.float32)
    if value.ndim == 2 and len(value) <= ROWS:
      sigma = 0.05 * 0.9 ** np.arange(min(value.shape))
      if name == CLOSE:
        sigma[:] = sigma[0] * (1 - 1e-5 * np.arange(len(sigma)))
      update = spectrum_matrix(rng, *value.shape, sigma)
    else:
      update = 1e-3 * rng.standard_normal(value.shape)
    found[name] = (wide + update).astype(BF16)
  return found


def spoil_last_row(folder: pathlib.Path, name: str) -> None:
  """Puts a NaN at the end of a tensor of a folder with one weight file."""
  path = folder / 'model.safetensors'
  ref = read_header(path).tensors[name]
  with path.open('r+b') as file:
    file.seek(ref.start + ref.nbytes - 2)
    file.write(np.array(np.nan, BF16).tobytes())


def mean(group: groups.Group) -> dict[str, np.ndarray]:
  """The base and the mean of two experts' updates, summed as the merge does."""
  base, *experts = (groups.load(path) for path in (group.base, *group.experts))
  found = dict(base)
  for name, value in base.items():
    if value.dtype == BF16:
      wide = value.astype(np.float32)
      first, second = (expert[name].astype(np.float32) - wide for expert in experts)
      found[name] = (
        wide + (np.float32(0.5) * first + np.float32(0.5) * second)
      ).astype(BF16)
  return found
