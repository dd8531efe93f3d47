r"""DARE with an election of signs, density 0.2 (arXiv 2311.03099).

The setting of the ResMerge paper's comparison (A.2). --seed=1 draws other masks; --config.method.flavour=mergelm is the authors' code.

python -m tools.merge --config=dare_ties --base=BASE --experts=A,B --output=M
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.method = ml_collections.ConfigDict(
    {
      'name': 'dare_ties',
      'flavour': 'mergekit',
      'density': 0.2,
      'scale': 1.0,
    }
  )
  config.output_dtype = 'bfloat16'
  config.seed = 0
  return config
