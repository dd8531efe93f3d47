"""The experts in tools/lab_experts, and what tools/quickstart.sh does with them."""

import json
import pathlib
import re
import shutil

from resmerge_jax.cli import lab, merge
from resmerge_jax.cli.config_file import load_config
from resmerge_jax.lab.group import _made_by, model_names
from resmerge_jax.lab.recipe import group_recipe
from tests import commands

TOOLS = pathlib.Path(__file__).parents[2] / 'tools'
FOLDER = TOOLS / 'lab_experts'
RECIPE = group_recipe(load_config('lab_disjoint', lab=True).to_dict())


def test_they_are_small_and_complete():
  files = [path for path in FOLDER.rglob('*') if path.is_file()]
  assert sum(path.stat().st_size for path in files) < 8_000_000
  for name in model_names(RECIPE):
    record = json.loads((FOLDER / f'seed_0/{name}/record.json').read_text())
    # What `tools.lab train --config=lab_disjoint --seed=0` makes today.
    assert record['made_by'] == _made_by(RECIPE, 0, name)
    assert (FOLDER / f'seed_0/{name}/bf16/model.safetensors').stat().st_size < 2**21


def test_the_script_takes_what_there_is():
  script = (TOOLS / 'quickstart.sh').read_text()
  assert re.findall(r'GROUP/(\w+)/bf16', script) == [*model_names(RECIPE)[1:], 'base']


def test_merged_and_evaluated(tmp_path):
  shutil.copytree(FOLDER / 'seed_0', tmp_path / 'seed_0')
  paths = {n: str(tmp_path / f'seed_0/{n}/bf16') for n in model_names(RECIPE)}
  base = paths.pop('base')
  experts = f'--experts={",".join(paths.values())}'
  ids = '--expert_ids=math,reason,tool,mem'
  flags = ('--method=task_arithmetic', f'--base={base}', experts, ids)
  merged = tmp_path / 'merged'
  done = commands.run(merge, *flags, f'--output={merged}')
  assert done.status == 0, done.err
  # One task, one program.
  flags = ("--config.tasks=('tool',)", '--config.test_prompts=50')
  done = commands.run(
    lab, 'evaluate', *flags, f'--output={tmp_path}', f'--models={merged}'
  )
  assert done.status == 0, done.err
  rows = [line.strip('| ').split(' | ') for line in done.out.splitlines()]
  found = {row[0]: row[1] for row in rows if len(row) == 3}
  shares = [float(found[name]) for name in ('base', str(merged), 'rl_tool')]
  assert shares == sorted(shares)
  assert shares[-1] >= shares[0] + 25
  assert (tmp_path / 'seed_0/evaluation.png').stat().st_size > 10_000
