r"""RL experts beside supervised ones as accurate, and as far from the base.

python -m tools.lab train --config=lab_twins --seed=0
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.tasks = ('math', 'reason', 'tool', 'mem')
  config.kinds = ('rl', 'sft', 'sft_length')
  config.rl = ml_collections.ConfigDict(
    {'rate': 3e-5, 'steps': 400, 'prompts': 16, 'samples': 8, 'bf16_weights': False}
  )
  config.test_prompts = 500
  return config
