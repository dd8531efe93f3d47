"""Ticks are round, cover the values, and do not crowd."""

import pytest

from resmerge_jax.report import axis, chart


@pytest.mark.parametrize('span', [1e-7, 0.013, 0.58, 1.0, 7.0, 99.9, 12345.0])
def test_linear_covers_with_few_ticks(span):
  made = axis.linear([-span / 3, span], 0.0, 100.0)
  assert made.low <= -span / 3
  assert made.high >= span
  assert 2 <= len(made.ticks) <= 9
  assert len({text for _, text in made.ticks}) == len(made.ticks)
  assert made.at(made.low) == 0.0
  assert made.at(made.high) == 100.0


def test_linear_of_nothing_but_zeros():
  assert axis.linear([0.0, 0.0], 0.0, 10.0).high == 1.0


@pytest.mark.parametrize(
  ('low', 'high'), [(0.03, 0.9), (1.0, 1.0), (3e-6, 40.0), (2.0, 60.0)]
)
def test_logarithmic_covers_with_few_ticks(low, high):
  made = axis.logarithmic([low, high], 0.0, 100.0)
  assert made.low <= low <= high <= made.high
  assert 2 <= len(made.ticks) <= 10
  assert 0.0 <= made.at(low) <= made.at(high) <= 100.0


@pytest.mark.parametrize('n', [1, 2, 24, 80, 126])
def test_layers_have_whole_ticks_inside(n):
  made = axis.whole(list(range(n)), 0.0, 100.0)
  assert 1 <= len(made.ticks) <= 9
  assert all(0 <= value < n and text == str(int(value)) for value, text in made.ticks)


def test_names_that_begin_alike_are_told_apart_in_little_room():
  names = [f'Qwen2.5-7B-Instruct-GRPO-{x}-step-100' for x in ('code', 'mathematics')]
  assert chart.brief(names) == ['…code-step-100', '…mathematics-step-100']
  assert chart.brief(['a', 'b']) == ['a', 'b']
  long = chart.brief(['a' * 100, 'b' * 100])
  assert all(8 * len(name) < chart.WIDTH / 2 for name in long)
