"""Prefixes and buffers among the names of tensors."""

import pytest

from resmerge_jax.checkpoint.names import (
  is_buffer,
  other_prefix,
  prefix_notes,
  prefix_of,
)
from resmerge_jax.checkpoint.summary import fold_names


@pytest.mark.parametrize(
  ('name', 'prefix'),
  [
    ('model.layers.0.mlp.up_proj.weight', 'model.'),
    ('model.language_model.norm.weight', 'model.language_model.'),
    ('language_model.model.norm.weight', 'language_model.model.'),
    ('lm_head.weight', ''),
    ('visual.model.weight', ''),
  ],
)
def test_prefix(name, prefix):
  assert prefix_of(name) == prefix


def test_names_are_paired_by_what_follows_the_prefix():
  wanted = ['model.language_model.norm.weight', 'model.visual.norm.weight', 'a.weight']
  stored = ['model.norm.weight', 'visual.norm.weight', 'b.weight']
  found = other_prefix(wanted, stored)
  assert found == dict(zip(wanted[:2], stored[:2], strict=True))
  assert prefix_notes(found) == [
    "1 tensors are called model.* for the base's model.language_model.*",
    "1 tensors are called * for the base's model.*",
  ]


def test_two_candidates_are_none():
  assert other_prefix(['model.a'], ['a', 'language_model.a']) == {}
  assert other_prefix(['model.a', 'language_model.model.a'], ['a']) == {}


@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    ('model.layers.0.self_attn.rotary_emb.inv_freq', True),
    ('inv_freq', True),
    ('h.0.attn.masked_bias', True),
    ('embeddings.position_ids', True),
    ('rotary_emb.cos_cached', True),
    ('h.0.attn.c_attn.bias', False),
    ('model.position_ids_embed.weight', False),
    ('mlp.gate.e_score_correction_bias', False),  # trained
  ],
)
def test_buffers(name, expected):
  assert is_buffer(name) is expected


def test_parts_are_folded():
  names = [f'layers.{i}.experts.up[{e}]' for i in range(2) for e in range(3)]
  assert [pattern for pattern, _ in fold_names(names)] == [
    'layers.{0..1}.experts.up[{0..2}]'
  ]
