r"""RAM+ as its authors' code runs it (arXiv 2601.13572): rescale 1.05, threshold 1e-5.

The setting of the ResMerge paper's comparison (A.2). --config.method.rescale=1.0 is RAM.

python -m tools.merge --config=ram --base=BASE --experts=A,B --output=M
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.method = ml_collections.ConfigDict(
    {
      'name': 'ram',
      'mode': 'arm-r-v2',
      'rescale': 1.05,
      'threshold': 1e-05,
    }
  )
  config.output_dtype = 'bfloat16'
  return config
