r"""TIES with a fifth of the entries kept, tensor by tensor (arXiv 2306.01708).

The setting of the ResMerge paper's comparison (A.2). --config.method.flavour=official trims the whole model at once, as the authors' code does.

python -m tools.merge --config=ties --base=BASE --experts=A,B --output=M
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.method = ml_collections.ConfigDict(
    {
      'name': 'ties',
      'flavour': 'mergekit',
      'keep': 0.2,
      'scale': 1.0,
      'reduce': 'mean',
    }
  )
  config.output_dtype = 'bfloat16'
  return config
