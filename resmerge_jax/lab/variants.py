"""What `compare` compares: bundled configs, and the project's own variants of them."""

from collections.abc import Mapping
from typing import Any

Method = Mapping[str, Any]  # its `name`, and parameters
REFERENCE = 'task_arithmetic'  # what paired differences are to: the mean
_RESMERGE = {'name': 'resmerge', 'variant': 'paper'}
VARIANTS: dict[str, Method] = {
  'task_arithmetic_sum': {'name': 'task_arithmetic', 'reduce': 'sum'},
  'resmerge_gate_none': {**_RESMERGE, 'head_gate': 'none'},
  'resmerge_gate_conflict': {**_RESMERGE, 'head_gate': 'conflict'},
  'retention': {'name': 'retention'},
  'retention_rescaled': {'name': 'retention', 'rescale': True},
}
# Factors of the update, of which one is chosen on training prompts.
LENGTHS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0)
