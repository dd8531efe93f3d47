r"""Eight experts: by RL and supervised, of the same four tasks.

python -m tools.lab train --config=lab_mixed --seed=0
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.tasks = ('math', 'reason', 'tool', 'mem')
  config.kinds = ('rl', 'sft')  # sft: as accurate as its twin by RL
  config.rl = ml_collections.ConfigDict(
    {'rate': 3e-5, 'steps': 400, 'prompts': 16, 'samples': 8, 'bf16_weights': False}
  )
  config.test_prompts = 500
  return config
