r"""The ablations of the ResMerge paper (arXiv 2606.02252, Table 2), as one sweep.

One reading of the weights and a folder for each setting; --sweep multiplies them.

python -m tools.merge --config=ablations --base=BASE --experts=A,B,C --output=DIR
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """The paper's settings, and what each ablation changes of them."""
  config = ml_collections.ConfigDict()
  config.method = ml_collections.ConfigDict({'name': 'resmerge', 'variant': 'paper'})
  config.sweep = (
    {'name': 'full'},
    {'name': 'without_head', 'method': {'rho': 0.0}},  # SRC-A w/o head
    {'name': 'ungated_head', 'method': {'head_gate': 'none'}},  # S_H = 1
    {'name': 'residual_only_mean', 'method': {'backbone': 'mean', 'rho': 0.0}},
    {'name': 'head_only_mean', 'method': {'backbone': 'none'}},
  )
  config.output_dtype = 'bfloat16'
  config.seed = 0
  return config
