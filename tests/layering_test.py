"""Imports go downward only, and heavy libraries stay where they are needed."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'resmerge_jax'
GROUND = {'types', 'errors', 'sizes', 'host_float', 'version'}
NUMERIC = GROUND | {'linalg', 'sharding', 'methods', 'processes'}
FILES = GROUND | {'checkpoint', 'plan', 'trees'}
# Which parts of the package a part may import, beside itself.
ALLOWED = {
  'version': set(),
  'types': set(),
  'errors': set(),
  'sizes': {'errors'},
  'host_float': {'types'},
  'linalg': GROUND,
  'sharding': GROUND,
  'processes': GROUND,
  'methods': GROUND | {'linalg'},
  'trees': GROUND,
  'checkpoint': GROUND | {'trees'},
  'plan': GROUND | {'checkpoint', 'trees'},
  'writers': FILES,
  'parameters': NUMERIC,
  'config_checks': NUMERIC | FILES,
  'config': NUMERIC | FILES | {'config_checks', 'parameters'},
  'sweep_settings': GROUND | {'config'},
  'mergekit_yaml': NUMERIC | FILES | {'config', 'parameters'},
  'synthetic': GROUND | {'checkpoint'},
  'bench': {'checkpoint', 'synthetic', 'sizes', 'errors', 'types', 'version', '__init__'},
  'models': FILES | {'writers'},
  'lab': GROUND
  | {'checkpoint', 'methods', 'models', 'parameters', 'pipeline', 'plan', 'writers'},
  'adarank': NUMERIC | FILES | {'config', 'models', 'pipeline'},
  'scores': {'errors'},
  'diagnostics': NUMERIC | FILES | {'config', 'parameters', 'pipeline', 'writers'},
  'report': GROUND | {'diagnostics'},
  'pipeline': NUMERIC | FILES | {'config', 'config_checks', 'parameters', 'writers'},
  'cli': NUMERIC | FILES
  | {'config', 'config_checks', 'parameters', 'writers', 'pipeline', 'synthetic', 'adarank', 'bench', 'lab', 'mergekit_yaml', 'scores', 'diagnostics', 'sweep_settings', 'report', '__init__'},
}  # fmt: skip
NEVER = {'torch', 'transformers', 'mergekit', 'matplotlib'}
REMOTE = {'tensorstore', 'fsspec', 'huggingface_hub'}  # loaded for an address only
NO_JAX = {
  'trees',
  'checkpoint',
  'plan',
  'writers',
  'synthetic',
  'bench',
  'scores',
  'report',
  *GROUND,
}
# May import matplotlib, where they draw.
PLOTS = {
  PACKAGE / f'{name}.py' for name in ('bench/plot', 'lab/plot', 'pipeline/sweep_plot')
}
MODULES = sorted(PACKAGE.rglob('*.py'))


def part_of(module: pathlib.Path) -> str:
  return module.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imports(module: pathlib.Path) -> set[str]:
  """Dotted names of everything a module imports, wherever in it."""
  found = set()
  for node in ast.walk(ast.parse(module.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{module}: relative import'
      found |= {f'{node.module}.{alias.name}' for alias in node.names}
  return found


@pytest.mark.parametrize(
  'module', MODULES, ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_go_downward(module):
  part = part_of(module)
  if part == '__init__':
    return  # the public names, loaded lazily
  words = [name.split('.') for name in imports(module)]
  used = {(*names, '__init__')[1] for names in words if names[0] == 'resmerge_jax'}
  assert used - {part} <= ALLOWED[part]
  tops = {names[0] for names in words}
  assert not tops & (NEVER - {'matplotlib'} if module in PLOTS else NEVER)
  if part in NO_JAX:
    assert not tops & {'jax', 'jaxlib', 'flax', 'orbax'}


def test_every_part_has_a_place():
  assert {part_of(module) for module in MODULES} - {'__init__'} == set(ALLOWED)


@pytest.mark.parametrize('part', ['synthetic', 'bench'])
def test_of_checkpoints_only_their_format_is_known(part):
  for module in (PACKAGE / part).glob('*.py'):
    from_checkpoint = {n for n in imports(module) if '.checkpoint.' in n}
    assert all(n.startswith('resmerge_jax.checkpoint.format.') for n in from_checkpoint)


@pytest.mark.parametrize(
  'modules',
  [
    ['resmerge_jax'],
    [
      'resmerge_jax.cli.show',
      'resmerge_jax.cli.compare',
      'resmerge_jax.cli.make_group',
      'resmerge_jax.cli.verify',
      'resmerge_jax.cli.bench',
      'resmerge_jax.cli.scores',
    ],
    ['resmerge_jax.checkpoint.group', 'resmerge_jax.plan.report'],
  ],
)
def test_what_needs_no_jax_does_not_load_it(modules):
  script = f'import sys, {", ".join(modules)}; print("jax" in sys.modules)'
  done = subprocess.run(
    [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, check=True
  )
  assert done.stdout == 'False\n'


def test_commands_load_no_client_library():
  script = (
    'import sys, resmerge_jax.cli.merge, resmerge_jax.pipeline.merge\n'
    'import resmerge_jax.cli.bench\n'
    f'print(sys.modules.keys() & {sorted(NEVER | REMOTE)!r})'
  )
  done = subprocess.run(
    [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, check=True
  )
  assert done.stdout == 'set()\n'
