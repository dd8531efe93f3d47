"""The page and its figures: complete, well formed, by themselves, the same every time."""

import html.parser
import json
import re
import xml.etree.ElementTree

import pytest

from resmerge_jax import report
from resmerge_jax.diagnostics.diagnosis import GroupDiagnosis
from resmerge_jax.report import geometry, merged, sizes, spectral, tensors
from resmerge_jax.report.chart import WIDTH
from resmerge_jax.report.page import MOST_TENSORS
from tests.report import diagnoses

VOID = {'meta'}
EVERY = {
  'agreement', 'alpha_beta', 'below_step', 'branches', 'cosines', 'cosines_by_layer',
  'cumulative_energy', 'distance', 'effective_rank', 'gap', 'leading_energy', 'norms',
  'relative_norm', 'retention', 'rounding_loss', 'shared', 'sign_conflict',
  'stable_rank', 'top_energy', 'zero_fraction',
}  # fmt: skip
NASTY = '<script>alert("x")</script> & \x00\x1b \'q\' ]]>'


class Page(html.parser.HTMLParser):
  """Fails where tags do not nest; keeps tags, attributes and text."""

  def __init__(self, text: str):
    super().__init__()
    self.open: list[str] = []
    self.tags: list[tuple[str, dict[str, str | None]]] = []
    self.said: list[str] = []
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] not in ('style', 'script'):
      self.said.append(data)

  @property
  def text(self) -> str:
    return ' '.join(self.said)

  def figures(self) -> set[str]:
    return {a['id'] for name, a in self.tags if name == 'figure'}


def written(diagnosis, folder) -> Page:
  return Page(report.write(diagnosis, folder).read_text(encoding='utf-8'))


def small(**changes) -> GroupDiagnosis:
  return diagnoses.group(**{'n_layers': 2, **changes})


def test_all_figures_of_full_records_on_the_page_and_as_files(tmp_path):
  page = written(diagnoses.groups(small()), tmp_path)
  assert page.figures() == EVERY
  assert 'Not shown' not in page.text
  files = {path.stem: path for path in (tmp_path / 'figures').iterdir()}
  assert set(files) == EVERY
  for path in files.values():
    xml.etree.ElementTree.parse(path)


def test_nothing_is_fetched_or_run_from_elsewhere(tmp_path):
  text = report.write(diagnoses.groups(small()), tmp_path).read_text(encoding='utf-8')
  assert 'http' not in text
  assert not re.search(r'@import|url\(|src=|<link|<iframe|<object', text)
  links = [a['href'] for name, a in Page(text).tags if name == 'a']
  ids = {a['id'] for _, a in Page(text).tags if a.get('id')}
  assert links
  assert {link.removeprefix('#') for link in links} <= ids
  for path in (tmp_path / 'figures').iterdir():
    assert path.read_text(encoding='utf-8').count('http') == 1  # the name of SVG


def test_findings_come_first_the_gravest_on_top_with_all_their_words(tmp_path):
  many = tuple(f'layer.{i}' for i in range(MOST_TENSORS + 7))
  group = small(
    findings=[
      diagnoses.finding('note', what='a note', consequence='c1', advice='a1'),
      diagnoses.finding('warning', what='one expert is long', tensors=()),
      diagnoses.finding('warning', what='another is long', tensors=()),
      diagnoses.finding('error', what='an error', tensors=many),
    ]
  )
  text = written(diagnoses.groups(group), tmp_path).text
  order = [
    '1  error',
    'an error',
    'one expert is long',
    'another is long',
    'a note',
    'Summary',
  ]
  places = [text.index(words) for words in order[1:-1]]
  assert places == sorted(places)
  assert places[-1] < text.rindex('Summary')
  for finding in group.findings:
    assert finding.consequence in text
    assert finding.advice in text
  assert f'{MOST_TENSORS + 7} tensors' in text
  assert 'and 7 more' in text
  assert many[MOST_TENSORS] not in text
  # Two of a kind share their advice: it is said once for them, once for the error.
  assert text.count('raise method.head_rank to 2') == 2


def test_without_findings_it_says_so(tmp_path):
  assert 'No finding' in written(diagnoses.groups(small()), tmp_path).text


FIELDS = sorted({key for record in small().records for key in record})


@pytest.mark.parametrize(
  'field',
  [key for key in FIELDS if key not in ('name', 'family', 'rule', 'shape', 'layer')],
)
def test_any_field_may_be_missing(tmp_path, field):
  page = written(diagnoses.groups(diagnoses.without(small(), field)), tmp_path)
  lost = EVERY - page.figures()
  assert ('Not shown' in page.text) == bool(lost)


def test_what_is_missing_is_named_with_the_way_to_get_it(tmp_path):
  kept = {'name', 'family', 'rule', 'shape', 'layer', 'delta_norm', 'zero_fraction'}
  group = diagnoses.without(small(), *(set(FIELDS) - kept))
  page = written(diagnoses.groups(group), tmp_path)
  assert page.figures() == {'zero_fraction'}
  for words in (
    'Effective rank, with the head and without',
    'needs whole spectra: tools.diagnose --effective_rank',
    'needs the weights: tools.diagnose with --base and --experts',
    'recorded by a merge: tools.diagnose --merged=MERGED',
    'was not measured',
    'none in the records',
  ):
    assert words in page.text


def test_records_without_numbers_one_expert_and_none_at_all(tmp_path):
  nothing = {'name': 'x', 'family': 'other', 'rule': 'base', 'shape': [], 'layer': None}
  empty = GroupDiagnosis('empty', 'base', ('a',), (nothing,), {})
  assert written(diagnoses.groups(empty), tmp_path / 'empty').figures() == set()
  page = written(diagnoses.groups(small(experts=['only'])), tmp_path / 'one')
  assert EVERY - page.figures() == {'cosines', 'cosines_by_layer'}
  assert 'One expert' in page.text


def test_none_nan_and_infinity_are_gaps(tmp_path):
  group = small()
  changed = {
    'cos_head_pairs': [None, float('nan'), 0.5],
    'energy': [None, [0.5, 0.6, 0.7, 0.8], [0.4]],
    'stable_rank': [float('inf'), None, 3.0],
    'effective_rank': None,
    'distance': [None] * 3,
  }
  records = tuple(
    record | changed if 'sigma' in record else record for record in group.records
  )
  odd = GroupDiagnosis('odd', 'base', group.expert_ids, records, group.totals)
  page = written(diagnoses.groups(odd), tmp_path)
  assert EVERY - page.figures() == {'distance'}
  drawn = ''.join(path.read_text() for path in (tmp_path / 'figures').iterdir())
  assert not re.search(r'[ "](nan|inf|None)', drawn)


def test_names_are_text_whatever_they_contain(tmp_path):
  group = small(
    label=NASTY,
    experts=[f'{NASTY}{i}' for i in range(3)],
    findings=[diagnoses.finding(what=NASTY, tensors=(NASTY,))],
  )
  records = tuple(
    {**record, 'name': NASTY + record['name']} for record in group.records
  )
  nasty = GroupDiagnosis(
    NASTY, NASTY, group.expert_ids, records, group.totals, group.findings,
    {NASTY: NASTY, 'branch': NASTY}, (NASTY,),
  )  # fmt: skip
  page = written(diagnoses.groups(nasty, small()), tmp_path)
  assert [name for name, _ in page.tags].count('script') == 1
  assert '<script>alert("x")</script> & \ufffd\ufffd' in page.text
  for path in (tmp_path / 'figures').iterdir():
    root = xml.etree.ElementTree.parse(path).getroot()
    assert not [e for e in root.iter() if e.tag.endswith('script')]


def test_the_same_diagnosis_gives_the_same_bytes(tmp_path):
  for folder in ('a', 'b'):
    report.write(
      diagnoses.groups(small(), small(label='SFT', seed=1)), tmp_path / folder
    )
  files = sorted(p.relative_to(tmp_path / 'a') for p in (tmp_path / 'a').rglob('*.*'))
  assert len(files) == len(EVERY) + 1
  for name in files:
    assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()


def test_groups_are_compared_in_every_figure(tmp_path):
  pair = diagnoses.groups(small(), small(label='SFT', head_share=0.08, seed=1))
  page = written(pair, tmp_path)
  assert page.figures() == EVERY
  for path in (tmp_path / 'figures').iterdir():
    drawn = path.read_text(encoding='utf-8')
    assert 'RL' in drawn
    assert 'SFT' in drawn
  assert 'RL: 3 experts of' in re.sub(r'\s+', ' ', page.text)


def test_the_numbers_behind_a_figure_are_those_of_the_records(tmp_path):
  group = small(experts=['a', 'b'], n_layers=1)
  text = report.write(diagnoses.groups(group), tmp_path).read_text(encoding='utf-8')
  figure = text[text.index('<figure id="leading_energy"') :]
  row = re.search(r'<tr><td class="text">attention</td><td>0</td>(.*?)</tr>', figure)
  assert row
  shown = [float(cell) for cell in re.findall('<td>(.*?)</td>', row[1])]
  expected = []
  for i in range(2):
    shares = [
      100 * r['energy'][i][0] for r in group.records if r['family'] == 'attention'
    ]
    expected += [sum(shares) / 4, min(shares), max(shares)]
  assert shown == pytest.approx(expected, rel=1e-3)  # written with four digits


@pytest.mark.parametrize(('n', 'said'), [(3, 'more than'), (2, 'less than')])
def test_the_summary_reads_numbers_against_right_angles(tmp_path, n, said):
  group = small(experts=['a', 'b', 'c'][:n])
  group.totals['c_R'] = {'mean': 0.65}  # 1 / sqrt(3) = 0.58, 1 / sqrt(2) = 0.71
  text = written(diagnoses.groups(group), tmp_path).text
  assert f'0.65 is {said} what {n} of one length at right angles would give' in text


def test_the_table_of_tensors_is_bounded_and_points_to_all(tmp_path):
  group = small(n_layers=3)
  count = 2 * tensors.MOST_ROWS
  records = [dict(group.records[2], name=f'x[{i}]') for i in range(count)]
  records[7] |= {'relative_norm': [9.0] * 3}
  big = GroupDiagnosis('big', 'base', group.expert_ids, tuple(records), {})
  text = report.write(diagnoses.groups(big), tmp_path).read_text(encoding='utf-8')
  assert f'{tensors.MOST_ROWS} of {count} tensors' in text
  assert 'diagnostics.csv has all' in text
  assert 'x[7]' in text
  assert text.count('>x[') == tensors.MOST_ROWS


@pytest.fixture(scope='module')
def large() -> GroupDiagnosis:
  names = [f'Qwen2.5-72B-Instruct-GRPO-{i}-step-100' * (1 + i % 2) for i in range(8)]
  return diagnoses.group('large', names, 80)


def test_the_report_of_a_large_group_stays_small(tmp_path, large):
  assert report.write(diagnoses.groups(large), tmp_path).stat().st_size < 3e6


def _boxes(panel) -> list[tuple[str, float, float, float, float]]:
  """Text, left, right, top and bottom of all labels; letters of 13 pixels are 6.5 wide."""
  found = []
  for element in xml.etree.ElementTree.fromstring(panel.draw()).iter('text'):
    text, kind = element.text or '', element.get('class', '')
    width = 6.5 * len(text)
    x, y = float(element.get('x', 0)), float(element.get('y', 0))
    left = x - width * (0.5 if 'middle' in kind else 1.0 if 'end' in kind else 0.0)
    found.append((text, left, left + width, y - 10, y + 2))
  return found


def test_no_label_lies_over_another_or_leaves_its_panel(large):
  pair = (large, diagnoses.group('SFT', ('a', 'b'), 3))
  for of in ((large,), pair):
    made = [*spectral.figures(of), *sizes.figures(of), *geometry.figures(of)]
    made += merged.figures(of)
    for panel in [panel for figure in made for panel in figure.panels]:
      boxes = _boxes(panel)
      for i, (text, left, right, top, bottom) in enumerate(boxes):
        assert left >= 0, text
        assert right <= WIDTH, text
        for other, left_2, right_2, top_2, bottom_2 in boxes[:i]:
          apart = (
            left >= right_2 or left_2 >= right or top >= bottom_2 or top_2 >= bottom
          )
          assert apart or not text or not other, (panel.title, text, other)


def test_facts_of_the_merge_and_notes_are_at_the_end(tmp_path):
  text = written(diagnoses.groups(small()), tmp_path).text
  assert json.dumps(diagnoses.MERGE_FACTS['config']['method']['rho']) in text
  assert 'merge: config.method.variant' in text
  assert '1 tensor is copied' in text
  assert '42 heads of 4 singular triplets' in text
