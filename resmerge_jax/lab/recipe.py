"""How a group of experts is made: every number, checked.

The learning rates, batches and widths were found by measurements that docs/lab.md
reports.
"""

import dataclasses
from typing import Any

from resmerge_jax.errors import InputError
from resmerge_jax.lab.tasks import BASE_TASKS, task_of
from resmerge_jax.lab.tokenizer import END_ID, VOCAB_SIZE
from resmerge_jax.models.config import DecoderConfig

KINDS = ('rl', 'sft', 'sft_length')


@dataclasses.dataclass(frozen=True)
class ModelRecipe:
  """Sizes of the Qwen2 model, and the standard deviations that weights start with."""

  hidden_size: int = 128
  intermediate_size: int = 352
  layers: int = 4
  heads: int = 4
  kv_heads: int = 2
  deviation: float = 0.09  # of matrices: about one over the root of their inputs
  embedding_deviation: float = 0.2
  head_deviation: float = 0.02

  def config(self) -> DecoderConfig:
    return DecoderConfig(
      model_type='qwen2',
      vocab_size=VOCAB_SIZE,
      hidden_size=self.hidden_size,
      intermediate_size=self.intermediate_size,
      num_hidden_layers=self.layers,
      num_attention_heads=self.heads,
      num_key_value_heads=self.kv_heads,
      head_dim=self.hidden_size // self.heads,
      max_position_embeddings=64,
      initializer_range=self.deviation,
      eos_ids=(END_ID,),
    )


@dataclasses.dataclass(frozen=True)
class BaseRecipe:
  """Pretraining in two phases; `examples` of each task are in a batch.

  Clean: right answers only, at a constant rate, until every task reaches `clean_goal`
  on training prompts. Mixed: `mixed_steps` in which the rate falls to a twentieth; a
  prompt that is to be answered rightly is so with probability `mixed_right`, any other
  with one minus that. The mixed phase is repeated while a task is outside `band`. In
  the loss, tasks that have `learned` (clean) or are inside the band (from the second
  mixed phase on) weigh `settled_weight`, the others one.
  """

  rate: float = 1e-3
  warmup: int = 100
  examples: tuple[int, ...] = (32, 20, 12, 32)  # math, reason, tool, mem
  clean_goal: float = 0.7
  learned: float = 0.9
  clean_most: int = 2000
  mixed_steps: int = 300
  mixed_right: float = 0.85
  band: tuple[float, float] = (0.25, 0.55)
  repeats: int = 5
  settled_weight: float = 0.2


@dataclasses.dataclass(frozen=True)
class RLRecipe:
  """GRPO: `samples` answers to each of `prompts` prompts per step."""

  rate: float = 3e-5
  warmup: int = 10
  steps: int = 400
  prompts: int = 16
  samples: int = 8
  bf16_weights: bool = False


@dataclasses.dataclass(frozen=True)
class SFTRecipe:
  """Right answers, until as good as the RL expert, or as far from the base (`most`)."""

  rate: float = 3e-5
  warmup: int = 10
  examples: int = 128
  most: int = 1000


@dataclasses.dataclass(frozen=True)
class GroupRecipe:
  """A base and one expert for each of `tasks` and `kinds`.

  Args:
    pretrained: the base is not trained here but this one, 'smollm2' (lab/smollm2.py);
      experts by RL alone. `model`, `base` and `check_every` say nothing then.
    kinds: rl; sft, as accurate as the rl expert; sft_length, as far from the base.
    check_prompts: training prompts per task of all checks while training.
    check_every: steps between them, and per program call.
    test_prompts: prompts per task of the test pool, the same for all models and seeds.
    lengths: factors of a merge's update, of which `compare` chooses one on training
      prompts.

  Raises:
    InputError: unknown tasks or kinds, or twins without what they are measured by.
  """

  tasks: tuple[str, ...] = tuple(task.name for task in BASE_TASKS)
  kinds: tuple[str, ...] = ('rl',)
  pretrained: str = ''
  model: ModelRecipe = ModelRecipe()
  base: BaseRecipe = BaseRecipe()
  rl: RLRecipe = RLRecipe()
  sft: SFTRecipe = SFTRecipe()
  check_prompts: int = 250
  check_every: int = 25
  test_prompts: int = 500
  lengths: tuple[float, ...] = tuple(round(2 ** (n / 2), 2) for n in range(-2, 7))

  def __post_init__(self) -> None:
    bases = {name: task_of(name).base for name in self.tasks}
    if wrong := [name for name, base in bases.items() if base != self.pretrained]:
      raise InputError(f'pretrained {self.pretrained!r}: not the base of tasks', wrong)
    if self.pretrained and self.kinds != ('rl',):
      raise InputError('kinds: experts of a pretrained base are by rl alone')
    problems = [f'{k!r}: not one of {", ".join(KINDS)}' for k in self.kinds]
    problems = [p for k, p in zip(self.kinds, problems, strict=True) if k not in KINDS]
    if 'rl' not in self.kinds:
      problems.append("no 'rl': the others are trained until they match it")
    if problems:
      raise InputError('kinds of experts', problems)

  @property
  def experts(self) -> dict[str, tuple[str, str]]:
    """Name -> (kind, task)."""
    return {f'{k}_{task}': (k, task) for k in self.kinds for task in self.tasks}


def group_recipe(values: dict[str, Any]) -> GroupRecipe:
  """The recipe that a config file's dictionary describes.

  Raises:
    InputError: fields there are not, or values that cannot be.
  """
  parts = {
    'model': ModelRecipe,
    'base': BaseRecipe,
    'rl': RLRecipe,
    'sft': SFTRecipe,
  }
  made = {}
  for name, value in values.items():
    part = parts.get(name)
    made[name] = _made(part, value, name) if part else value
  return _made(GroupRecipe, made, 'config')


def _made(kind: Any, values: dict[str, Any], where: str) -> Any:
  known = [field.name for field in dataclasses.fields(kind)]
  if unknown := [f'{where}.{name}' for name in values if name not in known]:
    raise InputError('unknown fields', unknown, fix=f'known are {", ".join(known)}')
  return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
