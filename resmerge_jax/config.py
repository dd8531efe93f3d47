"""The configuration of one run: frozen dataclasses, checked when they are made."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from resmerge_jax.checkpoint.remote import check_local
from resmerge_jax.config_checks import (
  check_choices,
  check_experts,
  check_format,
  check_head_ranks,
  check_rules,
  parse_mesh,
)
from resmerge_jax.errors import InputError
from resmerge_jax.linalg.krylov import solver_bytes
from resmerge_jax.linalg.passes import solves_in_blocks
from resmerge_jax.linalg.short_side import block_size
from resmerge_jax.methods.resmerge_params import ResMerge
from resmerge_jax.methods.table import (
  POSTS,
  method_of,
  n_scans,
  needs_float64,
  needs_whole_matrix,
  post_of,
)
from resmerge_jax.methods.task_arithmetic import TaskArithmetic
from resmerge_jax.parameters import from_mapping, make_method, make_post, named
from resmerge_jax.plan.rules import (
  SCOPES,
  Rule,
  as_weights,
  is_hidden,
  rules_from,
)
from resmerge_jax.plan.stacks import Choose, Chosen
from resmerge_jax.sizes import parse_size
from resmerge_jax.types import TensorRef


@dataclasses.dataclass(frozen=True)
class MergeConfig:
  """Everything a merge depends on. Sizes in bytes, or text such as '2GiB'.

  `base` and `experts` are folders, or addresses of remote ones (checkpoint/remote.py).
  `method` holds the parameters of the method itself. `rules` say which tensors get it
  (None: as the method declares), `outside` is the task arithmetic of the others (None:
  their mean, or the method itself where that is task arithmetic). `post`:
  post-processors in their order, pairs of name and parameters. `weights`: one per
  expert, a number or a list spread over the depth of the model. `max_shard_size` None
  keeps the base's shard layout; `memory_budget` None lets the plan choose. `resume`
  continues a run into this output that stopped, or verifies an output that is complete.
  `whole_files`: of several processes each writes files of its own, on its own devices.
  `save_recipe` also writes what gives this merge again without an SVD. `load_merged`
  needs no `output`. `head_ranks`: ranks of the heads that are solved together, the
  method's among them (None: that one alone); a sweep over ranks sets it, because last
  bits depend on it.
  `output_format` 'orbax' makes the output the root of an Orbax checkpoint, 'both' puts
  one into its folder orbax; `orbax_layout` is its tree, a name of `trees.table.LAYOUTS`.
  """

  base: str | Path
  experts: tuple[str | Path, ...]
  output: str | Path = dataclasses.field(default_factory=str)  # text or path
  expert_ids: tuple[str, ...] | None = None
  method: Any = dataclasses.field(default_factory=ResMerge)
  outside: TaskArithmetic | None = None
  rules: tuple[Rule, ...] | None = None
  post: tuple[tuple[str, Any], ...] = ()
  weights: tuple[Any, ...] | None = None
  output_dtype: Literal['base', 'bfloat16', 'float16', 'float32'] = 'bfloat16'
  max_shard_size: int | str | None = None
  memory_budget: int | str | None = None
  vocab: Literal['error', 'base_rows', 'pad'] = 'error'
  extra: Literal['error', 'ignore'] = 'error'
  missing: Literal['error', 'base'] = 'error'
  overwrite: bool = False
  seed: int = 0
  mesh: tuple[int, int] | str | None = None
  resume: bool = False
  whole_files: bool = False
  save_recipe: bool = False
  head_ranks: tuple[int, ...] | None = None
  output_format: Literal['safetensors', 'orbax', 'both'] = 'safetensors'
  orbax_layout: str = 'hf'

  def __post_init__(self) -> None:
    for name in ('experts', 'expert_ids', 'weights', 'head_ranks'):
      value = getattr(self, name)
      if isinstance(value, str):
        raise InputError(f'{name}: got the text {value!r}, expected a list')
      if value is not None:
        object.__setattr__(self, name, tuple(value))
    rules = merge_rules(self.rules, self.method)
    object.__setattr__(self, 'rules', rules)
    object.__setattr__(self, 'post', make_posts(self.post))
    for name in ('max_shard_size', 'memory_budget'):
      value = getattr(self, name)
      if value is not None:
        object.__setattr__(self, name, parse_size(value))
    if self.mesh is not None:
      object.__setattr__(self, 'mesh', parse_mesh(self.mesh))
    check_local(self.output, 'output')
    check_choices(self.output_dtype, self.vocab, self.seed, self.extra, self.missing)
    check_format(self.output_format, self.orbax_layout)
    check_experts(len(self.experts), self.expert_ids, self.weights, self.method)
    check_rules(rules, len(self.experts))
    check_head_ranks(self.head_ranks, self.method)
    if self.weights is not None:
      object.__setattr__(self, 'weights', as_weights(self.weights))

  @property
  def formats(self) -> str:
    """What is written, in words."""
    if self.output_format == 'safetensors':
      return 'safetensors'
    also = 'safetensors and ' if self.output_format == 'both' else ''
    return f'{also}orbax (layout {self.orbax_layout})'

  @property
  def on_host(self) -> bool:
    """Whether the host's CPUs compute although there may be accelerators."""
    assert self.rules is not None
    return on_host(self.method, self.rules, self.post)


def merge_rules(rules: Sequence[Any] | None, method: Any) -> tuple[Rule, ...]:
  """The table of rules, with the parameters of methods that rules name."""
  if rules is None:
    return SCOPES[method_of(method).gets(method)]
  return tuple(
    dataclasses.replace(rule, method=named(rule.method, make_method, 'rule'))
    if rule.method is not None
    else rule
    for rule in rules_from(rules)
  )


def make_posts(posts: Sequence[Any]) -> tuple[tuple[str, Any], ...]:
  """Post-processors as (name, parameters), from pairs or mappings with a name."""
  return tuple(named(post, make_post, 'post') for post in posts)


def choose(
  config_method: Any,
  outside: Any,
  posts: Sequence[tuple[str, Any]],
  n_experts: int,
  scanned: bool = True,
) -> Choose:
  """How a tensor of `n_experts` experts is merged, by its rule.

  A post-processor of whole matrices is for hidden matrices alone. `scanned`: scans are
  made, their results are not known from a recipe.
  """

  def chosen(rule: Rule, tensor: TensorRef) -> Chosen:
    if rule.action == 'base':
      return Chosen(None)
    params = outside
    if rule.action == 'method':
      params = rule.method[1] if rule.method else config_method
    post = tuple(
      p for name, p in posts if not POSTS[name].whole_matrix or is_hidden(tensor)
    )
    method = method_of(params)
    blocks = method.block_scratch(n_experts)
    blocks += sum(post_of(p).block_scratch(n_experts) for p in post)
    one_matrix = blocks * block_size(tensor.rows, tensor.cols)
    head_rank = method.head_rank(params)
    solves = head_rank > 0 and len(tensor.shape) > 1
    if solves:
      one_matrix += solver_bytes(tensor.rows, tensor.cols, head_rank)
    return Chosen(
      params,
      post,
      needs_whole_matrix(params, post),
      scans=n_scans(params, post) if scanned else 0,
      scratch=method.scratch,
      matrix_scratch=one_matrix,
      in_blocks=solves and not post and solves_in_blocks(tensor.rows, tensor.cols),
      redone=solves,
      on_factors=method.on_factors and not post,
      loses_rank=method.loses_rank(params),
      spans=method.spans,
    )

  return chosen


def on_host(
  method: Any, rules: Sequence[Rule], posts: Sequence[tuple[str, Any]]
) -> bool:
  """Whether something needs float64, which accelerators lack: CPUs compute then."""
  methods = [method, *(rule.method[1] for rule in rules if rule.method)]
  return any(needs_float64(params, [p for _, p in posts]) for params in methods)


def outside_of(method: Any, outside: Any, n_experts: int) -> Any:
  """Parameters of the method for tensors that the method does not get."""
  if outside is not None:
    return outside
  return method_of(method).outside(method, n_experts) or TaskArithmetic()


def config_from(values: Mapping[str, Any]) -> MergeConfig:
  """The configuration that a config file's dictionary (with flags put in) describes.

  `method` is a mapping with the method's `name` and any of its parameters, `outside`
  the parameters of task arithmetic, `rules` a list of mappings.

  Raises:
    InputError: missing or unknown fields, values out of range.
  """
  values = _given(values)
  missing = [
    f'--{name}' for name in ('base', 'experts', 'output') if not values.get(name)
  ]
  if missing:
    raise InputError(
      'missing flags', missing, fix='python -m tools.merge --help shows examples'
    )
  method = _given(values.pop('method', {}))
  if 'family_scale' in method:
    method['family_scale'] = _given(dict(method['family_scale'])) or None
  values['method'] = make_method(method.pop('name', 'resmerge'), method)
  if 'outside' in values:
    outside = _given(values['outside'])
    values['outside'] = make_method('task_arithmetic', outside) if outside else None
  return from_mapping(MergeConfig, values, 'config')


def to_plain(config: MergeConfig) -> dict[str, Any]:
  """The configuration as JSON knows it; `config_from` reads it back.

  Without `resume`, which tells how a run starts and nothing of what it makes.
  """
  values = dataclasses.asdict(config)
  del values['resume']
  values['method'] = {'name': method_of(config.method).name, **values['method']}
  for name in ('base', 'output'):
    values[name] = str(values[name])
  values['experts'] = [str(path) for path in config.experts]
  return _given(values)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
  """Without the fields that are not set."""
  return {name: value for name, value in values.items() if value is not None}
