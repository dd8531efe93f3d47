r"""ISO-CTS (arXiv 2502.04959): scale 1, four fifths of the directions common.

The setting of the ResMerge paper's comparison (A.2). --config.method.scope=hidden leaves embeddings and LM head to the mean.

python -m tools.merge --config=iso_cts --base=BASE --experts=A,B --output=M
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.method = ml_collections.ConfigDict(
    {
      'name': 'iso_cts',
      'scale': 1.0,
      'common_fraction': 0.8,
      'scope': 'matrices',
    }
  )
  config.output_dtype = 'bfloat16'
  return config
