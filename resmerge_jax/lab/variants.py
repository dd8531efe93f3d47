"""What `compare` compares: methods, whose settings they have, and what is done to them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from resmerge_jax.methods.components import Component
from resmerge_jax.methods.table import METHODS
from resmerge_jax.parameters import make_method

Parameters = Mapping[str, Any]  # with the method's `name`
REFERENCE = 'task_arithmetic'  # what paired differences are to: the mean
_AUTHORS = 'authors'  # the defaults of the methods' authors, or their code
PAPER = {'name': 'resmerge', 'variant': 'paper'}
_MEAN = {'name': 'task_arithmetic'}


@dataclasses.dataclass(frozen=True)
class Entry:
  """One merge. `setting`: whose parameters these are; `post`: post-processors."""

  setting: str
  method: Parameters
  post: tuple[tuple[str, Parameters], ...] = ()

  @property
  def params(self) -> Any:
    """The method's parameter dataclass."""
    fields = {k: v for k, v in self.method.items() if k != 'name'}
    return make_method(self.method['name'], fields)


# Table 2 of the paper: its method with one part changed.
_ABLATIONS: dict[str, Parameters] = {
  'resmerge, no head': {**PAPER, 'rho': 0.0},
  'resmerge, head not gated': {**PAPER, 'head_gate': 'none'},
  'resmerge, mean residual': {**PAPER, 'rho': 0.0, 'backbone': 'mean'},
  'resmerge, mean head': {**PAPER, 'backbone': 'none'},
}
_OURS = {
  'task_arithmetic, sum': Entry(_AUTHORS, {**_MEAN, 'reduce': 'sum'}),
  'task_arithmetic + svc': Entry(_AUTHORS, _MEAN, (('svc', {}),)),
  'task_arithmetic, sum + svc': Entry(
    _AUTHORS, {**_MEAN, 'reduce': 'sum'}, (('svc', {}),)
  ),
  'resmerge, gate on conflict': Entry('ours', {**PAPER, 'head_gate': 'conflict'}),
  'retention': Entry('ours', {'name': 'retention'}),
  'retention, layer': Entry('ours', {'name': 'retention', 'group': 'layer'}),
  'retention, model': Entry('ours', {'name': 'retention', 'group': 'model'}),
  'retention, rescaled': Entry('ours', {'name': 'retention', 'rescale': True}),
}


def comparison(bundled: Mapping[str, Parameters], n_experts: int) -> dict[str, Entry]:
  """All that is compared, by the name of its row.

  `bundled` are the configs of merges: ResMerge's settings of A.2, by their names, and
  the release. Then come the other methods that take so many experts, at their
  defaults; probes are no merges. A setting that is both is there once.
  """
  found = {
    name: Entry(_AUTHORS if name == 'resmerge_release' else 'A.2', method)
    for name, method in bundled.items()
  }
  found |= {name: Entry('ablation', method) for name, method in _ABLATIONS.items()}
  found |= _OURS
  same = {entry.params: name for name, entry in found.items() if not entry.post}
  for name, method in METHODS.items():
    default = Entry(_AUTHORS, {'name': name})
    params = default.params
    if issubclass(method.params, Component) or method.expects(params, n_experts):
      continue
    twin = same.get(params)
    if twin is None:
      found[f'{name}, default' if name in found else name] = default
    elif found[twin].setting == 'A.2':
      found[twin] = dataclasses.replace(found[twin], setting='A.2, authors')
  return found
