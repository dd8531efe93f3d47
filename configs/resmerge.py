r"""ResMerge as the paper has it (arXiv 2606.02252, Eq. 6-16 and A.2).

python -m tools.merge --config=resmerge --base=BASE --experts=A,B,C --output=MERGED
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """The paper's hyper-parameters; family scales are A.2's 1 / 0.25 / 0."""
  config = ml_collections.ConfigDict()
  config.method = ml_collections.ConfigDict(
    {
      'name': 'resmerge',
      'variant': 'paper',
      'head_rank': 1,  # k
      'beta_min': 0.7,
      'beta_max': 1.0,
      'rho': 0.2,
      'head_gate': 'agreement',  # none: the ungated ablation; conflict: ours
      'backbone': 'consensus',  # mean, none: ablations of the backbone
    }
  )
  config.output_dtype = 'bfloat16'
  config.seed = 0
  return config
