"""How often models are right on test prompts, and how far they are from their base."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from resmerge_jax.checkpoint.difference import BlockDifference, compare_checkpoints
from resmerge_jax.checkpoint.folder import open_checkpoint
from resmerge_jax.checkpoint.reader import CheckpointReader
from resmerge_jax.lab.answers import is_right, prompts_of
from resmerge_jax.models.load import load_decoder

Scores = Mapping[str, Mapping[str, np.ndarray]]  # of a model and a task: bool [Q]


class Measured(NamedTuple):
  """What was measured on the group of one seed; all answers are to test prompts.

  `tuned`: merges whose length, times `factors`, was chosen on training prompts.
  `parts`: of an expert, on its own task. `curves`: of ResMerge, by curve and value.
  `layers`: the geometry within each.
  """

  scores: Scores
  tuned: Scores
  factors: Mapping[str, float]
  parts: Scores
  curves: Mapping[str, Scores]
  geometry: Mapping[str, float]
  layers: Mapping[str, Mapping[str, float]]


class Update(NamedTuple):
  """An expert's change of the base's weights, from two folders of one precision."""

  length: float  # Euclidean norm of all of it
  relative: float  # the same, over the norm of the base
  zeros: float  # share of the weights that are exactly the base's


def score(
  folder: pathlib.Path, tasks: Iterable[str], test_prompts: int
) -> dict[str, np.ndarray]:
  """bool [test_prompts] per task: whether the greedy answer is the right one.

  Computed in float32 from the weights as they are stored. Every model gets the same
  prompts in the same order.
  """
  model = load_decoder(folder, param_dtype='float32')
  return {
    task: is_right(model, prompts_of(task, test_prompts, test=True)) for task in tasks
  }


def update_of(expert: pathlib.Path, base: pathlib.Path) -> Update:
  a, b = (open_checkpoint(path, role='model') for path in (base, expert))
  with CheckpointReader(a) as reader_a, CheckpointReader(b) as reader_b:
    found = [d.values for d in compare_checkpoints(a, b, reader_a, reader_b)]
  total = sum((values for values in found if values), start=BlockDifference())
  length = total.sum_squares_difference**0.5
  return Update(length, length / total.sum_squares_a**0.5, 1 - total.share_differ)


def standard_error(is_right_Q: np.ndarray) -> float:
  """Of a share, over prompts."""
  share = is_right_Q.mean()
  return float((share * (1 - share) / len(is_right_Q)) ** 0.5)


class Difference(NamedTuple):
  """How much more often one model is right than another, and its standard errors."""

  mean: float
  of_prompts: float  # the error over prompts, for these seeds
  of_seeds: float | None  # the error over seeds, for these prompts; None with one seed


def paired_difference(
  seeds: Sequence[Scores],
  name: str,
  reference: str,
  contents: Mapping[str, Sequence[str]],
) -> Difference:
  """Mean over seeds, tasks and prompts of how much more often `name` is right.

  All seeds and models have the same prompts. So differences are averaged over seeds
  first, and prompts with one content (`contents`, by task) are one draw: the same sum
  may be asked in two tasks, or in two forms.
  """
  tasks = list(contents)
  difference_SxTxQ = np.array(
    [
      [found[name][t].astype(float) - found[reference][t] for t in tasks]
      for found in seeds
    ]
  )
  n_seeds, n_tasks, n_prompts = difference_SxTxQ.shape
  by_prompt_TxQ = difference_SxTxQ.mean(axis=0)
  centred_TxQ = by_prompt_TxQ - by_prompt_TxQ.mean(axis=1, keepdims=True)
  _, draw = np.unique([c for t in tasks for c in contents[t]], return_inverse=True)
  sums = np.bincount(draw, weights=centred_TxQ.ravel())
  # By task this is the variance of a mean, where no content comes twice.
  variance = np.sum(sums**2) / (n_tasks**2 * n_prompts * (n_prompts - 1))
  of_seeds = None
  if n_seeds > 1:
    means_S = difference_SxTxQ.mean(axis=(1, 2))
    of_seeds = float(means_S.std(ddof=1) / n_seeds**0.5)
  return Difference(float(by_prompt_TxQ.mean()), float(variance**0.5), of_seeds)
