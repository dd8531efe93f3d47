"""Random weights of a base and of experts whose updates look like RL's.

An update is a few spectral directions (a head, then a decaying tail) that experts
partly share, plus small dense noise. Its size lies near the bfloat16 step of the
weights, so a large share of the stored entries does not change, as in real groups.

Everything is drawn from (seed, tensor name, block of rows): any block can be made
alone, in any order, with the same result.
"""

import dataclasses
import zlib
from collections.abc import Iterator

import numpy as np

BLOCK_SIZE = 1 << 21  # elements drawn at once: 8 MB in float32
_BASE_STD = 0.02
_BIAS_STD = 0.1
_UPDATE_SCALE = 2e-3  # RMS of an update over that of its base matrix
_EMBEDDING_SCALE = 0.25  # RL touches embeddings less than the layers
_LOW_RANK_ENERGY = 0.6  # of the update; dense noise has the rest
_SHARED_ENERGY = 0.7  # of each singular vector; the rest is the expert's own
_SPECTRUM_K = np.array([1.0, *(0.5 * 0.8**k for k in range(11))], np.float32)
_SIGMA_K = _SPECTRUM_K * np.sqrt(_LOW_RANK_ENERGY / np.sum(_SPECTRUM_K**2))


@dataclasses.dataclass(frozen=True)
class Block:
  """Rows `start` to `stop` of the tensor `name`, the `index`-th block of its kind."""

  name: str
  shape: tuple[int, ...]
  index: int
  start: int
  stop: int

  @property
  def block_shape(self) -> tuple[int, ...]:
    return (self.stop - self.start, *self.shape[1:])


def blocks(name: str, shape: tuple[int, ...]) -> Iterator[Block]:
  """The row blocks of a 1-D or 2-D tensor, each of about BLOCK_SIZE elements."""
  columns = shape[1] if len(shape) == 2 else 1
  step = max(1, BLOCK_SIZE // columns)
  for index, start in enumerate(range(0, shape[0], step)):
    yield Block(name, shape, index, start, min(start + step, shape[0]))


def base_block(seed: int, block: Block) -> np.ndarray:
  """Float32 base weights of a block: norms near one, biases and matrices around zero."""
  draw = _generator(seed, block.name, 'base', block.index)
  values = draw.standard_normal(block.block_shape, np.float32)
  if len(block.shape) == 2:
    values *= _BASE_STD
  elif block.name.endswith('bias'):
    values *= _BIAS_STD
  else:
    values *= 0.1
    values += 1.0
  return values


def update_block(seed: int, expert: str, block: Block) -> np.ndarray:
  """Float32 update of one expert on a block, before rounding to the stored dtype."""
  draw = _generator(seed, block.name, expert, block.index)
  noise = draw.random(block.block_shape, np.float32)
  noise -= 0.5
  scale = _strength(seed, expert) * _UPDATE_SCALE
  if len(block.shape) == 1:
    noise *= scale * np.sqrt(12) * (_BIAS_STD if block.name.endswith('bias') else 1.0)
    return noise
  scale *= _BASE_STD
  if block.name in ('model.embed_tokens.weight', 'lm_head.weight'):
    scale *= _EMBEDDING_SCALE
  left_RxK = _factor(seed, block, expert, 'left', block.block_shape[0])
  right_CxK = _factor(seed, block, expert, 'right', block.shape[1])
  update_RxC = (left_RxK * (_SIGMA_K * np.float32(scale))) @ right_CxK.T
  # Uniform noise has the variance 1/12.
  noise *= scale * np.sqrt(12 * (1 - _LOW_RANK_ENERGY))
  update_RxC += noise
  return update_RxC


def _factor(seed: int, block: Block, expert: str, side: str, rows: int) -> np.ndarray:
  """Singular vectors, one per column, not normalised: entries of unit variance."""
  index = block.index if side == 'left' else 0  # the right side serves all blocks
  shape = (rows, len(_SIGMA_K))
  shared = _generator(seed, block.name, side, index).standard_normal(shape, np.float32)
  own = _generator(seed, block.name, f'{expert} {side}', index)
  own_part = own.standard_normal(shape, np.float32) * np.sqrt(1 - _SHARED_ENERGY)
  return np.float32(np.sqrt(_SHARED_ENERGY)) * shared + own_part.astype(np.float32)


def _strength(seed: int, expert: str) -> float:
  """Experts are trained for different times: a factor between 0.7 and 1.4."""
  return 2.0 ** _generator(seed, '', expert, 0).uniform(-0.5, 0.5)


def _generator(seed: int, name: str, role: str, index: int) -> np.random.Generator:
  key = [seed, zlib.crc32(name.encode()), zlib.crc32(role.encode()), index]
  return np.random.Generator(np.random.SFC64(np.random.SeedSequence(key)))
