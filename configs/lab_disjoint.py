r"""Four RL experts of different tasks: maths, reasoning, tool calls, memory.

python -m tools.lab train --config=lab_disjoint --seed=0
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.tasks = ('math', 'reason', 'tool', 'mem')
  config.kinds = ('rl',)
  config.rl = ml_collections.ConfigDict(
    {'rate': 3e-5, 'steps': 400, 'prompts': 16, 'samples': 8, 'bf16_weights': False}
  )
  config.test_prompts = 500
  return config
