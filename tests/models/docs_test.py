"""The snippets of docs/models.md run as they are printed, one after another."""

import dataclasses
import pathlib
import re
from typing import Any

from resmerge_jax.models.save import save_decoder
from tests.models import tiny

PAGE = pathlib.Path(__file__).parents[2] / 'docs/models.md'


def test_snippets(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  config = dataclasses.replace(tiny.QWEN3, num_key_value_heads=4, num_hidden_layers=1)
  save_decoder(tiny.decoder(config), 'model')
  names: dict[str, Any] = {}
  for snippet in re.findall(r'```python\n(.*?)```', PAGE.read_text(), re.DOTALL):
    exec(snippet, names)
  assert names['logits'].shape == (2, 3, 40)
  assert len(names['texts']) == 2
  assert 3.5 < names['loss'] < 5  # log(64) = 4.2
  assert 'model.norm.weight' in names['tensors']
  assert sorted(p.name for p in (tmp_path / 'small').iterdir()) == [
    'config.json',
    'model.safetensors',
  ]
