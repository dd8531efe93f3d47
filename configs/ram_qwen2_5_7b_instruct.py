r"""Three RL experts of Qwen2.5-7B-Instruct: code, tool calls and memory.

The models that the code of RAM (arXiv 2601.13572, github.com/xiangchi-yuan/mrl, ram-main.py)
merges by default. docs/reproduce.md says what is known of the ResMerge paper's groups.
A word after a colon is the config whose method is used, resmerge without one. Reads 61 GB
from the Hub; --base and --experts name local copies.

python -m tools.merge --config=ram_qwen2_5_7b_instruct:ties --output=M
"""

import ml_collections

from resmerge_jax.cli.merge_flags import load_config


def get_config(method: str = 'resmerge') -> ml_collections.ConfigDict:
  config = load_config(method)
  config.base = 'hf://Qwen/Qwen2.5-7B-Instruct'
  config.experts = (
    'hf://Gen-Verse/ReasonFlux-Coder-7B',
    'hf://emrecanacikgoz/Qwen2.5-7B-Instruct-ToolRL-grpo-cold',
    'hf://BytedTsinghua-SIA/RL-MemoryAgent-7B',
  )
  return config
