r"""Three RL experts of overlapping domains of one task: sums and differences.

python -m tools.lab train --config=lab_related --seed=0
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.tasks = ('math_low', 'math_high', 'math_near')
  config.kinds = ('rl',)
  config.rl = ml_collections.ConfigDict(
    {'rate': 3e-5, 'steps': 400, 'prompts': 16, 'samples': 8, 'bf16_weights': False}
  )
  config.test_prompts = 500
  return config
