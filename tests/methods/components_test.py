"""One expert's head and residual."""

import numpy as np
import pytest

from resmerge_jax.errors import InputError
from resmerge_jax.methods.components import HeadOnly, ResidualOnly
from tests.methods import groups
from tests.oracles.resmerge import head as head_of


@pytest.mark.parametrize('expert', [0, 2])
@pytest.mark.parametrize('k', [1, 3])
def test_head_and_residual_add_up_to_the_expert(expert: int, k: int):
  delta_NxRxC = groups.experts(3, groups.ROWS, groups.COLS, 0.7)
  head = groups.exact_heads(delta_NxRxC, k)
  parts = []
  for kind in (HeadOnly, ResidualOnly):
    params = kind(expert=expert, head_rank=k)
    assert groups.method_of(params).head_rank(params) == k
    update, stats = groups.merge(params, 'ffn', delta_NxRxC, head)
    parts.append(np.asarray(groups.applied(update, delta_NxRxC)))
    assert stats == {}
  np.testing.assert_allclose(parts[0], head_of(delta_NxRxC[expert], k), atol=1e-6)
  np.testing.assert_allclose(sum(parts), delta_NxRxC[expert], atol=1e-6)


def test_an_expert_that_is_not_there():
  delta_NxRxC = groups.experts(2, 4, 3, 0.7)
  with pytest.raises(InputError) as error:
    groups.merge(
      ResidualOnly(expert=2), None, delta_NxRxC, groups.exact_heads(delta_NxRxC, 1)
    )
  message = 'residual_only.expert: got 2, expected 0 to 1 for 2 experts'
  assert str(error.value) == message


def test_parameters():
  with pytest.raises(InputError) as error:
    HeadOnly(expert=-1, head_rank=0, others='first')
  for part in (
    'head_only',
    'expert: got -1',
    'head_rank: got 0',
    "others: got 'first'",
  ):
    assert part in str(error.value)
  with pytest.raises(InputError, match='residual_only'):
    ResidualOnly(others='none')
  assert ResidualOnly() != HeadOnly()
