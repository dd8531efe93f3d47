"""The processes that are measured in turn: their commands, and what they tell."""

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Mapping

import resmerge_jax
from resmerge_jax.bench.cases import Benchmark, is_installed
from resmerge_jax.bench.groups import Group
from resmerge_jax.bench.process import Measured

OURS = ('ours_first', 'ours')
_MERGE = 'from resmerge_jax.cli.merge import run; run()'
_CACHE = 'JAX_COMPILATION_CACHE_DIR'  # would lead out of the benchmark's own folder


@dataclasses.dataclass(frozen=True)
class Rival:
  """One process of a round.

  It writes the folder `output` (None: writes nothing), which must then hold
  `n_bytes` of weights or a little more. `once`: in the first round only. `env` is set
  beside the environment of all.
  """

  name: str
  command: tuple[str, ...]
  output: pathlib.Path | None = None
  n_bytes: int = 0
  once: bool = False
  env: Mapping[str, str] = dataclasses.field(default_factory=dict)


def rivals(
  request: Benchmark, group: Group, work: pathlib.Path
) -> tuple[list[Rival], dict[str, str]]:
  """The processes in their order, and why others are missing, by name.

  `ours_first` comes right before `ours` and leaves it the compilation cache.
  """
  found, missing = [], {}
  if 'floor' in request.rivals:
    found += [_floor(group, work / 'floor'), _import_jax()]
  if 'mergekit' in request.rivals:
    if is_installed('mergekit'):
      found.append(_mergekit(group, work))
    else:
      missing['mergekit'] = "not installed: pip install 'resmerge-jax[clients]'"
  if 'full_svd' in request.rivals:
    found.append(_full_svd(group, work / 'full_svd', request.svd_layers))
  return [*found, *(_ours(name, group, work / name) for name in OURS)], missing


def environment(work: pathlib.Path) -> dict[str, str]:
  """Of every process: this package, and caches of its own below `work`."""
  package = str(pathlib.Path(resmerge_jax.__file__).parents[1])
  paths = [package, os.environ.get('PYTHONPATH', '')]
  return {
    **{name: value for name, value in os.environ.items() if name != _CACHE},
    'PYTHONPATH': os.pathsep.join(filter(None, paths)),
    'XDG_CACHE_HOME': str(cache_folder(work)),
    'HF_HUB_OFFLINE': '1',
  }


def cache_folder(work: pathlib.Path) -> pathlib.Path:
  return work / 'cache'


def warm_up(processes: list[Rival], group: Group, work: pathlib.Path) -> list[Rival]:
  """Processes that bring inputs and libraries into the page cache.

  Writing an output once makes the system find the memory that each output needs.
  """
  modules = ['resmerge_jax.pipeline.merge']
  if any(rival.name == 'mergekit' for rival in processes):
    modules.append('mergekit.scripts.run_yaml')
  imports = [(sys.executable, '-c', f'import {module}') for module in modules]
  return [_floor(group, work / 'warm-up'), *(Rival('import', c) for c in imports)]


def details(rival: Rival, measured: Measured, ended: float) -> dict[str, float]:
  """Numbers that the process told itself: seconds, bytes. `ended`: s since the epoch."""
  if rival.name in OURS:
    assert rival.output is not None
    return _told_by_manifest(rival.output, measured, ended)
  if rival.name in ('floor', 'full_svd'):
    return dict(json.loads(measured.stdout))
  return {}


def _told_by_manifest(
  output: pathlib.Path, measured: Measured, ended: float
) -> dict[str, float]:
  """The manifest's phases, and what lies before and after what it times."""
  content: Mapping = json.loads((output / 'manifest.json').read_bytes())
  seconds = content['seconds']
  # The first file that is written once all is merged.
  merged = (output / 'README.md').stat().st_mtime
  inside = {name: value for name, value in seconds.items() if name != 'until_commit'}
  stalls = sum(value for name, value in inside.items() if name.endswith('_wait'))
  return {
    'startup': max(merged - measured.started - seconds['until_commit'], 0.0),
    **inside,
    'other': seconds['until_commit'] - stalls,
    'until_commit': seconds['until_commit'],
    'commit': max(ended - merged, 0.0),
    'bytes_read': content['bytes_read'],
    'bytes_written': content['bytes_written'],
    'predicted_peak': content['predicted_peak_memory_bytes'],
  }


def _floor(group: Group, output: pathlib.Path) -> Rival:
  job = {
    'inputs': [str(file) for file in group.files],
    'outputs': {str(output / name): n for name, n in group.output_sizes.items()},
  }
  return Rival('floor', _module('floor', job), output, group.bytes_written)


def _import_jax() -> Rival:
  return Rival('import_jax', (sys.executable, '-c', 'import jax'))


def _full_svd(group: Group, output: pathlib.Path, layers: int) -> Rival:
  job = {
    'base': str(group.base),
    'experts': [str(path) for path in group.experts],
    'layers': layers,
    'output': str(output / 'model.safetensors'),
  }
  # The reference does its SVDs side by side.
  env = {'OPENBLAS_NUM_THREADS': '1', 'OMP_NUM_THREADS': '1'}
  return Rival('full_svd', _module('reference', job), output, 1, once=True, env=env)


def _module(name: str, job: Mapping) -> tuple[str, ...]:
  return (sys.executable, '-m', f'resmerge_jax.bench.{name}', json.dumps(job))


def _mergekit(group: Group, work: pathlib.Path) -> Rival:
  """Plain task arithmetic, the mean of the updates, without tokenizer and card."""
  weight = {'weight': 1 / len(group.experts)}
  config = {
    'merge_method': 'task_arithmetic',
    'base_model': str(group.base),
    'models': [{'model': str(path), 'parameters': weight} for path in group.experts],
    'parameters': {'normalize': False},
    'dtype': 'float32',
    'out_dtype': 'bfloat16',
  }
  file, output = work / 'mergekit.yml', work / 'mergekit'
  file.write_text(json.dumps(config, indent=2))  # YAML too
  switches = ('--no-copy-tokenizer', '--no-write-model-card', '--quiet')
  program = (sys.executable, '-W', 'ignore', '-m', 'mergekit.scripts.run_yaml')
  command = (*program, str(file), str(output), *switches)
  # The tensors' bytes: headers differ by a few kB.
  return Rival('mergekit', command, output, int(0.99 * group.bytes_written))


def _ours(name: str, group: Group, output: pathlib.Path) -> Rival:
  flags = (
    f'--base={group.base}',
    f'--experts={",".join(map(str, group.experts))}',
    f'--output={output}',
  )
  command = (sys.executable, '-c', _MERGE, *flags)
  return Rival(name, command, output, int(0.99 * group.bytes_written))
