"""The expert groups on disk: made once, found again by later runs."""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable

from resmerge_jax.bench.cases import MOST_EXPERTS, Case
from resmerge_jax.checkpoint.format import read_header
from resmerge_jax.errors import InputError
from resmerge_jax.synthetic import make_group


@dataclasses.dataclass(frozen=True)
class Group:
  """The folders of one case and their weight files; sizes in bytes."""

  base: pathlib.Path
  experts: tuple[pathlib.Path, ...]
  files: tuple[pathlib.Path, ...]  # of all folders
  bytes_read: int
  output_sizes: dict[str, int]  # weight file -> size, as in the base

  @property
  def bytes_written(self) -> int:
    return sum(self.output_sizes.values())


def prepare(
  cases: Iterable[Case], root: pathlib.Path, say: Callable[[str], None]
) -> dict[Case, Group]:
  """Makes the groups that are not in `root` yet; opens and checks all.

  Cases that differ in the number of experts share one group: its first experts.

  Raises:
    InputError: too little disk space, or a folder there holds something else.
  """
  root.mkdir(parents=True, exist_ok=True)
  found: dict[Case, Group] = {}
  for case in sorted(cases, key=lambda case: -case.n_experts):
    folder = _existing(case, root)
    if folder is None:
      folder = root / f'{_prefix(case)}{case.n_experts}e'
      say(f'{case}: making the group in {folder}')
      _make(case, folder)
    found[case] = open_group(case, folder)
  return found


def _prefix(case: Case) -> str:
  return f'{case.shape}-{case.layers}l-{case.vocab_rows}v-'


def _existing(case: Case, root: pathlib.Path) -> pathlib.Path | None:
  """The smallest group there that has enough experts."""
  sizes = range(case.n_experts, MOST_EXPERTS + 1)
  folders = (root / f'{_prefix(case)}{n}e' for n in sizes)
  return next((folder for folder in folders if folder.is_dir()), None)


def _make(case: Case, folder: pathlib.Path) -> None:
  """Complete under its name or not there: a killed run is started again."""
  partial = folder.with_name(folder.name + '.partial')
  shutil.rmtree(partial, ignore_errors=True)
  try:
    make_group(
      partial,
      case.shape,
      n_experts=case.n_experts,
      layers=case.layers,
      vocab_rows=case.vocab_rows,
    )
    os.rename(partial, folder)
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def open_group(case: Case, folder: pathlib.Path) -> Group:
  """The group in `folder`, its headers compared with the case's shapes.

  Raises:
    InputError: names or shapes are others, or a file cannot be read.
  """
  names = [path.name for path in folder.glob('expert_*')]
  order = ['expert_math', 'expert_code', 'expert_tool', *sorted(names)]
  experts = list(dict.fromkeys(name for name in order if name in names))
  folders = [folder / 'base', *(folder / name for name in experts[: case.n_experts])]
  files = [sorted(path.glob('*.safetensors')) for path in folders]
  wanted = dict(case.model.tensors())
  for path, found in zip(folders, files, strict=True):
    shapes: dict[str, tuple[int, ...]] = {}
    for file in found:
      shapes |= {n: ref.shape for n, ref in read_header(file).tensors.items()}
    if shapes != wanted:
      raise InputError(
        f'{path} does not hold the shapes of {case}', fix=f'remove {folder}'
      )
  every = tuple(file for found in files for file in found)
  return Group(
    folders[0],
    tuple(folders[1:]),
    every,
    sum(file.stat().st_size for file in every),
    {file.name: file.stat().st_size for file in files[0]},
  )
