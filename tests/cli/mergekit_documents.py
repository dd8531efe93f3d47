"""What the tests of --mergekit_yaml share: names of a model, a document, readers."""

from typing import Any

import pytest
import yaml

from resmerge_jax.config import config_from
from resmerge_jax.errors import InputError
from resmerge_jax.mergekit_yaml.translate import translate
from resmerge_jax.plan.rules import assign, depth_of, weights_at
from resmerge_jax.types import TensorRef

N_LAYERS = 5
NAMES = [
  'model.embed_tokens.weight',
  *(
    f'model.layers.{layer}.{part}.weight'
    for layer in range(N_LAYERS)
    for part in ('self_attn.q_proj', 'mlp.up_proj', 'input_layernorm')
  ),
  'model.norm.weight',
  'lm_head.weight',
]


def read(text: str) -> tuple[dict[str, Any], tuple[str, ...]]:
  return translate(yaml.safe_load(text), {'base': NAMES, 'a': NAMES}.__getitem__)


def resolved(values: dict[str, Any]) -> dict[str, tuple[Any, tuple[float, ...] | None]]:
  """What the pipeline gives each tensor: the method's parameters, and the weights."""
  config = config_from({**values, 'output': 'out'})
  rules = assign([TensorRef(n, 'BF16', (4, 4)) for n in NAMES], config.rules)
  found = {}
  for name, rule in rules.items():
    assert rule.action == 'method'
    params = rule.method[1] if rule.method else config.method
    weights = rule.weights or config.weights
    found[name] = (
      params,
      None if weights is None else weights_at(weights, depth_of(name, N_LAYERS)),
    )
  return found


TASK_ARITHMETIC = """
merge_method: task_arithmetic
base_model: base
models:
  - model: a
    parameters: {weight: 0.7}
  - model: b
    parameters: {weight: -0.3}
parameters: {lambda: 1.5}
dtype: float32
out_dtype: bfloat16
"""


def assert_message(call, *texts: str) -> None:
  with pytest.raises(InputError) as error:
    call()
  for text in texts:
    assert text in str(error.value)
