"""Makes a synthetic expert group: real names, shapes and files, random weights.

Writes the Hugging Face folders OUTPUT/base and OUTPUT/expert_math, expert_code,
expert_tool, expert_3, ... with config, tokenizer and sharded bfloat16 weights, to
try a merge or measure it without downloading a model. The same flags give the same
bytes.

Examples:
  A tiny Qwen2 base with three experts (2 MB each):
    python -m tools.make_group --shape=tiny --output=out/tiny
  The shapes of Qwen2.5-0.5B (four folders of 1 GB):
    python -m tools.make_group --shape=qwen2.5-0.5b --experts=3 --output=out/0.5b
  Eight layers of Llama 3 8B's shapes:
    python -m tools.make_group --shape=llama-3-8b --layers=8 --output=out/llama
  One layer of Qwen2.5 7B's without its large embeddings:
    python -m tools.make_group --shape=qwen2.5-7b --layers=1 --vocab_rows=1024
      --output=out/7b_layer
"""

from absl import flags

from resmerge_jax.cli.app import no_arguments, run_app
from resmerge_jax.synthetic import SHAPES, make_group


def _define_flags() -> None:
  flags.DEFINE_enum('shape', 'tiny', list(SHAPES), 'model whose shapes are imitated')
  flags.DEFINE_integer('experts', 3, 'number of experts')
  flags.DEFINE_string('output', None, 'folder to make (new or empty)', required=True)
  flags.DEFINE_integer('layers', None, 'decoder layers (default: all of the model)')
  flags.DEFINE_integer('vocab_rows', None, "vocabulary (default: the model's)")
  flags.DEFINE_integer('seed', 0, 'of all weights')
  flags.DEFINE_bool(
    'tied', None, "share lm_head with the embeddings (default: as the model's)"
  )


def main(argv: list[str]) -> None:
  """Makes the group that the flags describe and prints its folders."""
  no_arguments(argv)
  flag = flags.FLAGS
  base, experts = make_group(
    flag.output,
    flag.shape,
    n_experts=flag.experts,
    tied=flag.tied,
    layers=flag.layers,
    vocab_rows=flag.vocab_rows,
    seed=flag.seed,
  )
  print('\n'.join(['base    ' + str(base), *(f'expert  {path}' for path in experts)]))


def run() -> None:
  """Entry point of `resmerge-make-group` and `python -m tools.make_group`."""
  _define_flags()
  run_app(main, __doc__)
