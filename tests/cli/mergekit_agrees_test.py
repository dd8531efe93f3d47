"""The same YAML file through mergekit and through tools.merge gives the same weights."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from resmerge_jax.cli import merge
from resmerge_jax.mergekit_yaml.table import KITS
from resmerge_jax.methods.table import METHODS
from resmerge_jax.synthetic import ModelShape, make_group
from tests import commands, groups

# Layers enough for gradients to have values between those given; few shapes to compile.
SHAPE = ModelShape('qwen2', 64, 64, 4, 2, 2, 32, 64, True)
WEIGHTS = 'models: [{{model: {a}, parameters: {{weight: 0.8}}}}, {{model: {b}}}]\n'
BASE = 'base_model: {base}\n'
HEAD = BASE + WEIGHTS
DEFAULT = 'parameters: {{weight: 0.4}}\n'
CASES = {
  'task_arithmetic': HEAD
  + """
parameters:
  weight:
    - {{filter: self_attn, value: [1, 0.5, 0]}}
    - {{filter: mlp, value: 0.3}}
    - value: [0.2, 0.6]
  lambda:
    - {{filter: mlp, value: [0.5, 1.5]}}
    - value: 1
""",
  'linear': WEIGHTS + 'parameters: {{weight: [0.1, 0.4, 0.9]}}\n',
  'linear with its base': HEAD + DEFAULT,
  'slerp': """
base_model: {a}
slices:
  - sources:
      - {{model: {b}, layer_range: [0, 4]}}
      - {{model: {a}, layer_range: [0, 4]}}
parameters:
  t:
    - {{filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}}
    - {{filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}}
    - value: 0.5
""",
  'nuslerp': HEAD + DEFAULT,
  'nuslerp without a base': WEIGHTS + DEFAULT,
  'nuslerp by rows': HEAD + 'parameters: {{weight: 0.4, nuslerp_flatten: false}}\n',
  'multislerp': HEAD + DEFAULT,
  'karcher': 'models: [{{model: {a}}}, {{model: {b}}}, {{model: {c}}}]\n',
  'model_stock': BASE + 'models: [{{model: {a}}}, {{model: {b}}}]\n',
  'model_stock by rows': BASE
  + 'models: [{{model: {a}}}, {{model: {b}}}]\nparameters: {{filter_wise: true}}\n',
  'ram': BASE + 'models: [{{model: {a}}}, {{model: {b}}}, {{model: {c}}}]\n',
  'ties': HEAD
  + 'parameters: {{weight: 0.4, density: [{{filter: mlp, value: 0.7}}, {{value: 0.2}}]}}\n',
  'ties without normalize': HEAD
  + 'parameters: {{weight: 0.4, density: 0.5, normalize: false}}\n',
  'breadcrumbs': HEAD + 'parameters: {{weight: 0.4, density: 0.6, gamma: 0.05}}\n',
  'breadcrumbs_ties': HEAD + 'parameters: {{weight: 0.4, density: 0.6}}\n',
  'nearswap': BASE + 'models: [{{model: {a}}}]\nparameters: {{t: 0.003}}\n',
}


def method_of(case: str) -> str:
  return case.split(' ')[0]


HERE = {case for case in CASES if KITS[method_of(case)].ours in METHODS}
MERGEKIT = """
import json, pathlib, sys, warnings, yaml
warnings.simplefilter('ignore')
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
options = MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False)
for file, output in json.loads(sys.argv[1]):
  values = yaml.safe_load(pathlib.Path(file).read_text())
  run_merge(MergeConfiguration.model_validate(values), output, options)
"""


def move(expert: pathlib.Path, seed: int) -> None:
  """Adds an update to each tensor, larger than mergekit's absolute thresholds.

  Of float32 numbers no two are equal, and no mean lies halfway between two bfloat16.
  """
  rng = np.random.default_rng(seed)
  (file,) = expert.glob('*.safetensors')
  weights = {
    name: value + np.float32(0.03) * rng.normal(size=value.shape).astype(np.float32)
    for name, value in groups.load(expert).items()
  }
  save_file(weights, file, {'format': 'pt'})


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> dict[str, tuple[pathlib.Path, pathlib.Path]]:
  """Of each case the YAML file, and the folder that mergekit made of it."""
  path = tmp_path_factory.mktemp('mergekit')
  base, (a, b, c) = make_group(path, SHAPE, n_experts=3, dtype='float32')
  for seed, expert in enumerate((a, b, c)):
    move(expert, seed)
  jobs = {}
  for at, case in enumerate(sorted(HERE)):
    text = CASES[case].format(base=base, a=a, b=b, c=c)
    values = yaml.safe_load(text)
    values |= {
      'merge_method': method_of(case), 'dtype': 'float32', 'out_dtype': 'bfloat16'
    }  # fmt: skip
    file = path / f'{at}.yaml'
    file.write_text(yaml.safe_dump(values))
    jobs[case] = (file, path / f'out{at}')
  done = subprocess.run(
    [sys.executable, '-c', MERGEKIT, json.dumps(list(jobs.values()), default=str)],
    env={**os.environ, 'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': '1'},
    cwd=path,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return jobs


@pytest.mark.parametrize('case', sorted(HERE))
def test_same_weights(files, tmp_path, case):
  file, theirs = files[case]
  done = commands.run(merge, f'--mergekit_yaml={file}', f'--output={tmp_path / "out"}')
  assert done.status == 0, done.err
  got, want = (groups.load(p) for p in (tmp_path / 'out', theirs))
  assert got.keys() == want.keys()
  for name, value in got.items():
    # Sums in another order round to the other neighbour now and then.
    groups.assert_within_a_unit(value, want[name], share=0.02, name=name)
  base = json.loads((tmp_path / 'out/manifest.json').read_text())['config']['base']
  start = groups.load(pathlib.Path(base))
  assert any(np.any(got[name] != start[name].astype(groups.BF16)) for name in got)
