"""Merges that write Orbax checkpoints, and merges of such: the bits of safetensors."""

import dataclasses
import os
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from orbax.checkpoint import v1 as checkpoint

import resmerge_jax
from resmerge_jax.checkpoint.folder import open_checkpoint
from resmerge_jax.cli import verify
from resmerge_jax.errors import InputError
from resmerge_jax.models.load import load_decoder
from resmerge_jax.models.save import hf_tensors
from resmerge_jax.pipeline.prepare import prepare
from resmerge_jax.writers.folder import FolderWriter
from tests import commands, groups, orbax_folders, resumes
from tests.groups import MEAN
from tests.trees import models


def near(tensors, seed):
  rng = np.random.default_rng(seed)
  return {
    n: (a.astype(np.float32) + 0.1 * rng.normal(size=a.shape)).astype(a.dtype)
    for n, a in tensors.items()
  }


def write_group(path, kind):
  base = models.tensors(kind)
  experts = [near(base, 1), near(base, 2)]
  return groups.write(path, base, experts, config=models.config(kind))


@pytest.fixture(scope='module')
def by_kind(tmp_path_factory) -> dict[str, groups.Group]:
  kinds = ('qwen2', 'qwen3_moe', 'llama')
  return {kind: write_group(tmp_path_factory.mktemp(kind), kind) for kind in kinds}


@pytest.fixture(scope='module')
def plain(by_kind, tmp_path_factory):
  """What the same merges write as safetensors."""
  path = tmp_path_factory.mktemp('plain')
  found = {}
  for key in (('qwen2', 'bfloat16'), ('qwen2', 'float32'), ('qwen3_moe', 'bfloat16')):
    output = path / '-'.join(key)
    groups.merge(by_kind[key[0]], output, method=MEAN, output_dtype=key[1])
    found[key] = groups.load(output)
  return found


@pytest.mark.parametrize(
  ('layout', 'kind', 'dtype'),
  [
    ('hf', 'qwen2', 'bfloat16'),
    ('nnx', 'qwen2', 'float32'),
    ('maxtext', 'qwen2', 'bfloat16'),
    ('maxtext_scanned', 'qwen3_moe', 'bfloat16'),
    ('tunix', 'qwen2', 'float32'),
  ],
)
def test_orbax_restores_the_bits_of_safetensors(
  by_kind, plain, tmp_path, layout, kind, dtype
):
  output = tmp_path / 'out'
  settings = {'output_format': 'orbax', 'orbax_layout': layout, 'output_dtype': dtype}
  manifest = groups.merge(by_kind[kind], output, method=MEAN, **settings)
  orbax_folders.assert_tree(output, layout, kind, plain[kind, dtype])
  assert groups.config(output)['torch_dtype'] == dtype
  assert {p.name for p in output.iterdir()} == {
    '_CHECKPOINT_METADATA', 'orbax.checkpoint', 'state', 'README.md', 'config.json',
    'manifest.json', 'records.jsonl', 'tokenizer.json', 'tokenizer_config.json',
  }  # fmt: skip
  assert manifest.content['config']['orbax_layout'] == layout
  custom = checkpoint.metadata(output).custom_metadata
  assert custom['layout'] == layout
  if layout.startswith('maxtext'):
    assert custom['scan_layers'] == (layout == 'maxtext_scanned')
  done = commands.run(verify, output)
  assert (done.status, done.err) == (0, ''), done


def test_both_formats(by_kind, plain, tmp_path):
  output = tmp_path / 'out'
  groups.merge(by_kind['qwen2'], output, method=MEAN, output_format='both')
  want = plain['qwen2', 'bfloat16']
  groups.assert_same_bits(groups.load(output), want)
  groups.assert_same_bits(checkpoint.load(output / 'orbax'), want)
  assert open_checkpoint(output).tree is None
  assert open_checkpoint(output / 'orbax').tensors.keys() == want.keys()
  assert commands.run(verify, output).status == 0
  leaf = output / 'orbax' / 'state' / 'model.norm.weight' / 'c' / '0'
  leaf.write_bytes(leaf.read_bytes()[:-1] + b'x')
  (output / 'orbax' / 'state' / 'stray').touch()
  done = commands.run(verify, output)
  assert 'c/0: damaged: its checksum differs' in done.out
  assert 'orbax/state/stray: not part of the merge' in done.out


@pytest.mark.parametrize('layout', ['hf', 'maxtext_scanned', 'nnx'])
def test_orbax_checkpoints_are_merged(by_kind, plain, tmp_path, layout):
  """The base as a merge or conversion writes it, an expert as Orbax saves it."""
  group = by_kind['qwen2']
  config = models.config('qwen2')
  experts = []
  for i, path in enumerate(group.experts):
    leaves = orbax_folders.tree(layout, groups.load(path), config)
    saved = orbax_folders.save(tmp_path / f'e{i}', leaves, config, layout=layout)
    experts.append(saved)
  mixed = groups.Group(group.base, (experts[0], group.experts[1]))
  of_orbax = groups.Group(experts[0], tuple(experts))
  out = groups.merge(mixed, tmp_path / 'out', method=MEAN).output
  groups.assert_same_bits(groups.load(out), plain['qwen2', 'bfloat16'])
  settings = {'output_format': 'orbax', 'orbax_layout': 'nnx', 'method': MEAN}
  out = groups.merge(of_orbax, tmp_path / 'again', **settings).output
  pair = groups.Group(group.experts[0], group.experts)
  want = groups.load(groups.merge(pair, tmp_path / 'want', method=MEAN).output)
  orbax_folders.assert_tree(out, 'nnx', 'qwen2', want)
  out = groups.merge(of_orbax, tmp_path / 'single', method=MEAN).output
  assert [p.name for p in out.glob('*.safetensors')] == ['model.safetensors']
  groups.assert_same_bits(groups.load(out), want)


def test_merged_into_arrays_and_loaded_as_a_decoder(by_kind, plain, tmp_path):
  """What reads checkpoints reads those of Orbax, in any tree."""
  group, out = by_kind['qwen2'], tmp_path / 'out'
  settings = {'output_format': 'orbax', 'orbax_layout': 'maxtext_scanned'}
  groups.merge(group, out, method=MEAN, **settings)
  want = plain['qwen2', 'bfloat16']
  config = groups.config_of(groups.Group(out, (out,)), tmp_path / 'no', method=MEAN)
  with pytest.warns(UserWarning, match='identical to the base'):
    arrays = resmerge_jax.load_merged(dataclasses.replace(config, **settings))
  groups.assert_same_bits({n: np.asarray(a) for n, a in arrays.items()}, want)
  groups.assert_same_bits(dict(hf_tensors(load_decoder(out))), want)


def test_experts_fused_in_one_tensor(tmp_path):
  """Merged expert by expert, in and out."""
  base = {
    'model.embed_tokens.weight': models.tensors('llama')['model.embed_tokens.weight'],
    'model.layers.0.mlp.experts.down_proj': np.arange(3 * 10 * 12, dtype=np.float32)
    .reshape(3, 10, 12)
    .astype(ml_dtypes.bfloat16),
  }
  settings = {'config': models.config('qwen3_moe')}
  group = groups.write(tmp_path / 'g', base, [near(base, 1), near(base, 2)], **settings)
  want = groups.load(groups.merge(group, tmp_path / 'want', method=MEAN).output)
  out = tmp_path / 'out'
  groups.merge(group, out, method=MEAN, output_format='orbax')
  groups.assert_same_bits(checkpoint.load(out), want)
  saved = [
    orbax_folders.save(
      tmp_path / path.name, groups.load(path), models.config('qwen3_moe')
    )
    for path in (group.base, *group.experts)
  ]
  of_orbax = groups.Group(saved[0], tuple(saved[1:]))
  got = groups.load(groups.merge(of_orbax, tmp_path / 'again', method=MEAN).output)
  groups.assert_same_bits(got, want)


@pytest.mark.parametrize('whole_files', [False, True])
def test_a_recipe_beside_the_checkpoint(by_kind, plain, tmp_path, whole_files):
  output = tmp_path / 'out'
  settings = {'output_format': 'orbax', 'save_recipe': True, 'whole_files': whole_files}
  groups.merge(by_kind['qwen2'], output, method=MEAN, **settings)
  groups.assert_same_bits(checkpoint.load(output), plain['qwen2', 'bfloat16'])
  assert (output / 'recipe' / 'recipe.json').exists()
  assert commands.run(verify, output).status == 0


def test_an_input_that_changes_meanwhile(by_kind, tmp_path, monkeypatch):
  group = by_kind['qwen2']
  base = tmp_path / 'base'
  groups.merge(group, base, method=MEAN, output_format='orbax')
  write = FolderWriter.write

  def touching(self, *args):
    os.utime(base / 'state' / 'model.norm.weight' / 'c' / '0')
    write(self, *args)

  monkeypatch.setattr(FolderWriter, 'write', touching)
  with pytest.raises(InputError, match='input files were changed'):
    groups.merge(groups.Group(base, group.experts), tmp_path / 'out', method=MEAN)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['base']


@pytest.mark.parametrize('output_format', ['orbax', 'both'])
def test_a_stopped_run_ends_with_the_same_checkpoint(
  tmp_path, monkeypatch, output_format
):
  group = resumes.write_group(tmp_path / 'group')
  output = tmp_path / 'work' / 'out'
  settings = {**resumes.SETTINGS, 'output_format': output_format}
  groups.merge(group, output, **settings)
  expected = resumes.contents(output)
  shutil.rmtree(output)
  monkeypatch.setattr('resmerge_jax.writers.journal.EVERY_S', 0)
  resumes.stop(group, output, monkeypatch, output_format=output_format)
  assert not output.exists()
  left = {path.name for path in output.parent.rglob('*') if path.is_file()}
  assert not left & {'_METADATA', '_CHECKPOINT_METADATA', 'zarr.json', 'config.json'}
  manifest = resumes.resume(group, output, output_format=output_format)
  assert any(note.startswith('resuming: ') for note in manifest.notes)
  assert resumes.contents(output) == expected
  assert os.listdir(output.parent) == ['out']
  again = resumes.resume(group, output, output_format=output_format)
  assert again.verified_only
  with pytest.raises(InputError, match='output_format: got safetensors, expected'):
    resumes.resume(group, output)


def test_a_commit_that_was_stopped_is_undone(tmp_path, monkeypatch):
  """At every rename of a commit: nothing of it can be loaded, and it can go on."""
  group = resumes.write_group(tmp_path / 'group')
  output = tmp_path / 'work' / 'out'
  groups.merge(group, output, **resumes.SETTINGS, output_format='orbax')
  expected = resumes.contents(output)
  n_shards = len(resumes.tensors(0))
  rename = os.rename
  for n_renames in (2, n_shards, 2 * n_shards, 2 * n_shards + 6):
    shutil.rmtree(output)
    left = [n_renames]

    def stopping(a, b, left=left):
      left[0] -= 'new' in pathlib.Path(a).parts
      if left[0] == -1:
        raise KeyboardInterrupt
      rename(a, b)

    with monkeypatch.context() as patch:
      patch.setattr(os, 'rename', stopping)
      with pytest.raises(KeyboardInterrupt):
        groups.merge(group, output, **resumes.SETTINGS, output_format='orbax')
    names = {p.name for p in output.parent.rglob('*') if p.is_file()}
    assert not names & {'_METADATA', 'zarr.json', 'config.json', 'orbax.checkpoint'}
    resumes.resume(group, output, output_format='orbax')
    assert resumes.contents(output) == expected


def test_one_format_replaces_the_other(by_kind, plain, tmp_path):
  group, output = by_kind['qwen2'], tmp_path / 'out'
  groups.merge(group, output, method=MEAN, output_format='both')
  groups.merge(group, output, method=MEAN, output_format='orbax', overwrite=True)
  assert not list(output.glob('*.safetensors'))
  groups.assert_same_bits(checkpoint.load(output), plain['qwen2', 'bfloat16'])


def test_whole_files_keep_their_groups(by_kind, tmp_path):
  group = by_kind['qwen2']
  settings = {'method': MEAN, 'output_format': 'orbax', 'max_shard_size': '1kB'}
  config = groups.config_of(group, tmp_path / 'out', whole_files=True, **settings)
  plan = prepare(config).plan
  assert len(plan.layout.shards) > len(plan.layout.groups) > 3
  for step in plan.steps:
    assert len({plan.layout.group_of[name] for name in step.names}) == 1
  assert sum(plan.layout.groups.values()) == sum(s.nbytes for s in plan.layout.shards)


def test_more_files_than_may_be_open(by_kind, plain, tmp_path, monkeypatch):
  monkeypatch.setattr('resmerge_jax.writers.disk.KEPT_OPEN', 3)
  output = tmp_path / 'out'
  groups.merge(by_kind['qwen2'], output, method=MEAN, output_format='orbax')
  groups.assert_same_bits(checkpoint.load(output), plain['qwen2', 'bfloat16'])


def refused(group, output, **settings) -> str:
  with pytest.raises(InputError) as caught:
    groups.merge(group, output, method=MEAN, **settings)
  assert not output.parent.exists()
  return str(caught.value)


def test_refused_before_a_weight_is_read(by_kind, tmp_path, monkeypatch):
  def read(*_):
    raise AssertionError('no weight is needed to refuse this')

  monkeypatch.setattr('resmerge_jax.checkpoint.reader.CheckpointReader.read_into', read)
  output = tmp_path / 'work' / 'out'
  settings = {'output_format': 'orbax', 'orbax_layout': 'maxtext'}
  text = refused(by_kind['llama'], output, **settings)
  assert text.startswith("orbax_layout maxtext: no table for model_type 'llama'")
  config = models.config('qwen2')
  del config['num_attention_heads']
  base = models.tensors('qwen2')
  group = groups.write(tmp_path / 'g', base, [near(base, 1)], config=config)
  text = refused(group, output, output_format='both', orbax_layout='nnx')
  assert 'config.json of the base has no num_attention_heads' in text
  text = refused(group, output, orbax_layout='nnx')
  assert text == (
    'orbax_layout: got nnx, but no Orbax checkpoint is written\n'
    'What to do: add --output_format=orbax or --output_format=both'
  )
  text = refused(group, output, output_format='zarr')
  assert text == "output_format: got 'zarr', expected safetensors | orbax | both"


def test_restored_without_devices(by_kind, tmp_path):
  """Nothing in the checkpoint names a device."""
  output = tmp_path / 'out'
  groups.merge(by_kind['qwen2'], output, method=MEAN, output_format='orbax')
  leaves = jax.tree.leaves(checkpoint.load(output))
  assert {type(leaf) for leaf in leaves} == {np.ndarray}
  assert {leaf.dtype for leaf in leaves} == {np.dtype(ml_dtypes.bfloat16)}
