"""What a task is: a program that draws prompts with one right answer each.

Prompts with the same `content` are the same question in another form (12+34 and 34+12,
facts or pairs in another order): they are in one pool, test or training.
"""

import dataclasses
import zlib
from collections.abc import Callable

import numpy as np

_TEST_SHARE = 5  # one content in five is kept for tests


@dataclasses.dataclass(frozen=True)
class Example:
  """One prompt; `habit` is what our base is taught to answer where not `rightly`.

  `begun`: the answer's beginning, where the prompt has it.
  """

  prompt: str
  answer: str
  content: str
  habit: str = ''
  rightly: bool = True
  begun: str = ''

  @property
  def is_test(self) -> bool:
    return zlib.crc32(self.content.encode()) % _TEST_SHARE == 0


@dataclasses.dataclass(frozen=True)
class Task:
  """A program that draws examples. Widths in tokens; the answer's includes its end.

  `base` names the model whose tokens its texts are; '' is the lab's own
  (lab/tokenizer.py).
  """

  name: str
  prompt_width: int
  answer_width: int
  draw: Callable[[np.random.Generator], Example]
  base: str = ''

  def examples(
    self, rng: np.random.Generator, count: int, *, test: bool = False
  ) -> list[Example]:
    """`count` draws from the training or the test pool."""
    found: list[Example] = []
    while len(found) < count:
      example = self.draw(rng)
      if example.is_test == test:
        found.append(example)
    return found

  def distinct(
    self, rng: np.random.Generator, count: int, *, test: bool
  ) -> list[Example]:
    """`count` different prompts of a pool."""
    found: dict[str, Example] = {}
    while len(found) < count:
      example = self.examples(rng, 1, test=test)[0]
      found.setdefault(example.prompt, example)
    return list(found.values())
