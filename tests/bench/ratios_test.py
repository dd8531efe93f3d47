"""Ratios are taken within a round; tables say what they show."""

import pytest

from resmerge_jax.bench import ratios, report
from tests.bench.made_up import GB, result, sample

ROUNDS = result(
  sample('floor', 1, 1.0, {'read': 0.3, 'write': 0.2, 'sync': 0.5}),
  sample('import_jax', 1, 0.5),
  sample('mergekit', 1, 6.0, anonymous=5 * GB),
  sample('full_svd', 1, 300.0, {'svd': 290.0, 'total': 299.0}),
  sample('ours_first', 1, 4.0),
  sample('ours', 1, 3.0, anonymous=GB),
  # The machine is three times slower in round 2, and a little in round 3.
  sample('floor', 2, 3.0, {'read': 0.9, 'write': 0.6, 'sync': 1.5}),
  sample('import_jax', 2, 1.5),
  sample('mergekit', 2, 20.0),
  sample('ours_first', 2, 12.0),
  sample('ours', 2, 9.0, anonymous=3 * GB),
  sample('floor', 3, 1.25, {'read': 0.5, 'write': 0.25, 'sync': 0.5}),
  sample('import_jax', 3, 0.75),
  sample('mergekit', 3, 8.0),
  sample('ours_first', 3, 5.0),
  sample('ours', 3, 3.0, anonymous=2 * GB),
)


def test_comparisons_round_by_round():
  found = {c.label: c for c in ratios.comparisons(ROUNDS)}

  mergekit = found['ours / mergekit'].spread
  assert (mergekit.median, mergekit.low, mergekit.high) == (0.45, 0.375, 0.5)
  least = found['ours / (floor + import jax)'].spread
  assert (least.median, least.low, least.high) == (2.0, 1.5, 2.0)
  unsynced = found['ours / (floor without its fsync + import jax)'].spread
  assert (unsynced.median, unsynced.low) == (3.0, 2.0)
  first = found['ours, first run - later run']
  assert (first.unit, first.spread.median) == ('s', 2.0)
  whole = found['full SVD / ours, per layer, whole processes']
  assert whole.spread.median == 400.0  # 300 s for one layer, 3 s for four
  inner = found['full SVD / ours, per layer, without start, compiling and commit']
  assert inner.spread.median == pytest.approx(299.0 * 4 / 1.5)


def test_what_was_not_measured_is_not_compared():
  found = ratios.comparisons(
    result(sample('ours_first', 1, 2.0), sample('ours', 1, 1.0))
  )
  assert [c.label for c in found] == ['ours, first run - later run']


def test_spread_peak_and_detail():
  assert ratios.spread([3.0, 1.0, 2.0, 4.0]) == ratios.Spread(2.5, 1.0, 4.0)
  assert ratios.peak(ROUNDS, 'ours', 'anonymous') == 3 * GB
  assert ratios.peak(ROUNDS, 'mergekit', 'resident') == 2 * GB
  unknown = result(sample('ours', 1, 1.0, anonymous=None))
  assert ratios.peak(unknown, 'ours', 'anonymous') is None
  assert ratios.detail(ROUNDS, 'floor', 'read') == 0.5
  assert ratios.detail(ROUNDS, 'import_jax', 'read') is None


def test_fit():
  exact = ratios.fit([1, 2, 4], [3, 5, 9])
  assert (exact.slope, exact.intercept, exact.r2) == pytest.approx((2, 1, 1))
  assert ratios.fit([1, 2, 3], [0, 2, 1]).r2 == pytest.approx(0.25)
  assert ratios.fit([1, 2], [5, 5]) == ratios.Line(0, 5, 1)


def test_report():
  text = '\n'.join(report.describe(ROUNDS))

  assert text.startswith('tiny: 4 layers, 3 experts, 854,144 parameters; 3.73 GiB read')
  assert '3 rounds in turn' in text
  rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
  assert rows['mergekit'][1:] == [
    '8.00', '(6.00', '-', '20.00)', '2.22x', '16.00', '4.66', 'GiB', '1.86', 'GiB',
    'plain', 'task', 'arithmetic',
  ]  # fmt: skip
  assert 'by numpy.linalg.svd, 1 of 4 layers' in text
  assert rows['read_wait'][1:3] == ['0.25', '0.25']
  assert rows['floor:'] == [
    'floor:',
    'read',
    '0.50',
    's,',
    'write',
    '0.25',
    's,',
    'sync',
    '0.50',
    's',
  ]
  assert '1.67 GB/s over the whole process, 2.50 GB/s until the commit' in text
  assert (
    'peaks at 2.79 GiB of anonymous memory, predicted 1.86 GiB: off by +50 %' in text
  )


def test_a_busy_machine_is_told():
  samples = [
    sample('ours_first', 1, 3.0, others=1.0),
    sample('ours', 1, 1.0, others=0.2),
  ]
  assert ratios.busy_with_others(result(*samples)) == pytest.approx(0.8)
  assert report.describe(result(*samples))[-1].startswith(
    'note: other processes kept 0.8 cores busy meanwhile'
  )
  unknown = [sample(name, 1, 1.0, others=None) for name in ('ours_first', 'ours')]
  assert ratios.busy_with_others(result(*unknown)) is None
  assert 'busy' not in report.describe(result(*unknown))[-1]


def test_report_says_what_is_missing_and_unknown():
  lonely = result(
    sample('ours_first', 1, 2.0, anonymous=None),
    sample('ours', 1, 1.0, anonymous=None),
    missing={'mergekit': 'not installed'},
    notes=('the disk was cold',),
  )
  lines = report.describe(lonely)
  assert lines[-2:] == ['mergekit: not installed', 'note: the disk was cold']
  assert '1 round in turn' in lines[0]
  assert any(line.split()[:1] == ['ours'] and 'unknown' in line for line in lines)
  assert not any('predicted' in line for line in lines)
