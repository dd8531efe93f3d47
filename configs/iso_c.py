r"""ISO-C (arXiv 2502.04959) with scale 1.

The setting of the ResMerge paper's comparison (A.2). --config.method.scope=hidden leaves embeddings and LM head to the mean.

python -m tools.merge --config=iso_c --base=BASE --experts=A,B --output=M
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.method = ml_collections.ConfigDict(
    {
      'name': 'iso_c',
      'scale': 1.0,
      'scope': 'matrices',
    }
  )
  config.output_dtype = 'bfloat16'
  return config
