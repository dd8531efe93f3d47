r"""ResMerge as the authors' public code of July 2026 computes it.

Raw coherence as retention, fallback to the mean residual where coherence is chance,
family scales 1 / 1 / 0. One difference on purpose: weights are rounded once, to the
output dtype, where that code rounds to the base's dtype first.

python -m tools.merge --config=resmerge_release --base=BASE --experts=A,B --output=M
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.method = ml_collections.ConfigDict({'name': 'resmerge', 'variant': 'release'})
  config.output_dtype = 'bfloat16'
  config.seed = 0
  return config
