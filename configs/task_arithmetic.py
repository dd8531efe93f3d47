r"""Task arithmetic: the mean of the task vectors on every tensor (arXiv 2212.04089).

--config.method.reduce=sum adds them up, --config.method.scale is lambda,
--weights=1,2,1 weights the experts (negative weights subtract).

python -m tools.merge --config=task_arithmetic --base=BASE --experts=A,B --output=M
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.method = ml_collections.ConfigDict(
    {'name': 'task_arithmetic', 'reduce': 'mean', 'scale': 1.0}
  )
  config.output_dtype = 'bfloat16'
  return config
