"""A model folder, known from its config and the headers of its weights alone."""

import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from resmerge_jax.checkpoint.adapter_config import (
  CONFIG_NAME,
  AdapterConfig,
  read_adapter_config,
)
from resmerge_jax.checkpoint.files import CAN_EXPECT, Folder
from resmerge_jax.checkpoint.json_object import load_json_object
from resmerge_jax.checkpoint.orbax_tree import OrbaxTree, is_orbax, open_tree
from resmerge_jax.checkpoint.remote import (
  RemoteFolder,
  open_remote,
  scheme_of,
)
from resmerge_jax.checkpoint.shards import INDEX, read_shards
from resmerge_jax.errors import InputError
from resmerge_jax.types import QUANTISED_CODES, TensorRef

# Other formats of weights, and pickles of training state. None is read or copied.
FOREIGN_SUFFIXES = ('.bin', '.pt', '.pth', '.ckpt', '.h5', '.msgpack', '.gguf', '.onnx')
PICKLE_SUFFIXES = ('.bin', '.pt', '.pth', '.ckpt')
# Written anew with every merge, or describing the input rather than the output.
_OWN_FILES = frozenset(
  {'config.json', CONFIG_NAME, 'README.md', 'manifest.json', 'records.jsonl'}
)
_ADAPTER_WEIGHTS = 'adapter_model.safetensors'
TOKENIZER_FILES = frozenset(
  [
    'tokenizer.json',
    'vocab.json',
    'vocab.txt',
    'tokenizer.model',
    'spiece.model',
    'sentencepiece.bpe.model',
    'tekken.json',
    'tiktoken.model',
    'qwen.tiktoken',
  ]
)
# Names that GPTQ, AWQ, compressed-tensors, bitsandbytes and MLX give to their parts.
_QUANTISED_NAME = re.compile(
  r'\.(qweight|qzeros|scales|g_idx|weight_scale(_inv)?|weight_packed|SCB)$'
  r'|\.weight\.(absmax|quant_map|nested_absmax|quant_state\.\w+)$'
)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """What a model folder (or an in-memory state dict: `path` None) holds.

  `side_files` are the top-level files a merged folder copies byte for byte. `adapter`:
  the folder is a LoRA adapter; `config` is empty then and `tensors` are its factors.
  `tree`: it is an Orbax checkpoint, and this says where in it the tensors lie.
  """

  id: str
  path: Folder | None
  config: Mapping[str, Any]
  tensors: Mapping[str, TensorRef]  # in shard-file order, then offset order
  shard_files: tuple[str, ...] = ()
  side_files: tuple[str, ...] = ()
  header_sha256: str = ''  # over all shard headers, in file order
  warnings: tuple[str, ...] = ()
  adapter: AdapterConfig | None = None
  tree: OrbaxTree | None = None

  @property
  def config_name(self) -> str:
    """The file beside the weights without which they mean nothing."""
    return 'config.json' if self.adapter is None else CONFIG_NAME

  @property
  def is_remote(self) -> bool:
    return isinstance(self.path, RemoteFolder)

  @property
  def reads_ahead(self) -> bool:
    """Whether bytes that are expected (`Reader.expect`) come before there is a buffer.

    The system reads those of files on this machine; others are in memory.
    """
    return CAN_EXPECT and self.tree is None and not self.is_remote

  @property
  def nbytes(self) -> int:
    """Bytes of all tensors."""
    return sum(ref.nbytes for ref in self.tensors.values())


def open_checkpoint(
  path: str | os.PathLike, id: str | None = None, role: str = 'checkpoint'
) -> Checkpoint:
  """Reads config, index and shard headers of the folder at `path`, but no weights.

  Args:
    path: a Hugging Face model folder, or the folder of a LoRA adapter; it and its
      files may be symbolic links. Or the address of one: gs://BUCKET/PATH,
      s3://BUCKET/PATH, hf://OWNER/NAME[@REVISION]. Or an Orbax
      checkpoint of one model with a config.json beside its own files.
    id: the folder's name unless given.
    role: what errors and warnings call it: 'base', "expert 'math'".

  Raises:
    InputError: not a readable, unquantised, complete safetensors model folder, nor a
      plain LoRA adapter.
  """
  folder = _folder_at(path, role)
  who = f'{role} {folder}'
  names, folders = _list(folder, who)
  if is_orbax(names):
    return _open_orbax(folder, id, names, folders, who)
  _check_kind(names, who)
  is_adapter = CONFIG_NAME in names and _weights(names) == [_ADAPTER_WEIGHTS]
  if is_adapter:
    adapter, raw = read_adapter_config(folder / CONFIG_NAME, who)
    shards = read_shards(folder, names, who)
    return Checkpoint(
      id=id or folder.name or str(folder),
      path=folder,
      config={},
      tensors=shards.tensors,
      shard_files=shards.files,
      side_files=tuple(name for name in names if _is_side_file(name)),
      header_sha256=hashlib.sha256(raw + shards.header_sha256.encode()).hexdigest(),
      adapter=adapter,
    )
  config = _read_config(folder, who)
  _check_config_quantisation(config, who)
  shards = read_shards(folder, names, who)
  _check_quantised_tensors(shards.tensors, who)
  side_files = [name for name in names if _is_side_file(name)]
  return Checkpoint(
    id=id or folder.name or str(folder),
    path=folder,
    config=config,
    tensors=shards.tensors,
    shard_files=shards.files,
    side_files=tuple(side_files),
    header_sha256=shards.header_sha256,
    warnings=(*shards.warnings, *_folder_warnings(names, folders, who)),
  )


def _open_orbax(
  folder: Folder, id: str | None, names: list[str], folders: list[str], who: str
) -> Checkpoint:
  if isinstance(folder, RemoteFolder):
    raise InputError(
      f'{who}: an Orbax checkpoint behind an address',
      why='only safetensors are read from there',
      fix='copy it to this machine, or give the safetensors of the model',
    )
  config = _read_config(folder, who)
  _check_config_quantisation(config, who)
  tree, tensors, files, digest = open_tree(folder, config, who)
  _check_quantised_tensors(tensors, who)
  others = [name for name in folders if tree.item and name != tree.item]
  return Checkpoint(
    id=id or folder.name or str(folder),
    path=folder,
    config=config,
    tensors=tensors,
    shard_files=files,
    side_files=tuple(n for n in names if _is_side_file(n) and n not in files),
    header_sha256=digest,
    warnings=tuple(_folder_warnings(names, others, who)),
    tree=tree,
  )


def _folder_at(path: str | os.PathLike, role: str) -> Folder:
  if scheme_of(path):
    return open_remote(os.fspath(path), role)
  return pathlib.Path(os.path.abspath(os.path.expanduser(path)))


def _list(folder: Folder, who: str) -> tuple[list[str], list[str]]:
  """Sorted names of visible files and folders at the top; broken links are files."""
  if isinstance(folder, RemoteFolder):
    files, folders = list(folder.files), list(folder.folders)
  else:
    names = _list_local(folder, who)
    folders = [name for name in names if (folder / name).is_dir()]
    files = [name for name in names if name not in folders]
  return [n for n in files if n[0] != '.'], [n for n in folders if n[0] != '.']


def _list_local(folder: pathlib.Path, who: str) -> list[str]:
  if not os.path.lexists(folder):
    fix = 'check the path'
    if not folder.parent.exists():
      fix += '; a model of the Hugging Face Hub is hf://OWNER/NAME'
    raise InputError(f'{who}: no such folder', fix=fix)
  if not folder.is_dir():
    raise InputError(
      f'{who}: a file, not a folder',
      fix='give the folder that holds config.json and the *.safetensors files',
    )
  try:
    return sorted(os.listdir(folder))
  except OSError as error:
    raise InputError(f'{who}: cannot be listed: {error.strerror}') from error


def _weights(names: list[str]) -> list[str]:
  return [name for name in names if name.endswith('.safetensors')]


def _check_kind(names: list[str], who: str) -> None:
  """Raises unless the folder holds safetensors weights of a whole model."""
  weights = _weights(names)
  pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
  if not weights and pickles:
    loaded = 'transformers: AutoModelForCausalLM.from_pretrained(DIR)'
    if CONFIG_NAME in names:
      loaded = 'PEFT: AutoPeftModelForCausalLM.from_pretrained(DIR)'
    raise InputError(
      f'{who}: weights only as pickles, no *.safetensors',
      pickles,
      why='a pickle executes code when it is read, so this program never opens one',
      fix=f'if you trust the files, convert them with {loaded}.save_pretrained('
      'NEW_DIR, safe_serialization=True)',
    )
  if not weights and INDEX not in names:
    raise InputError(
      f'{who}: not a checkpoint folder: no *.safetensors at its top',
      [f'holds {", ".join(names[:10]) or "no files"}'],
      fix='give the folder that holds config.json and the *.safetensors files',
    )


def _read_config(folder: Folder, who: str) -> dict[str, Any]:
  file = folder / 'config.json'
  try:
    return load_json_object(file.read_bytes())
  except FileNotFoundError:
    raise InputError(
      f'{who}: no config.json',
      why='it says which model the tensors belong to, and the output needs it',
      fix="copy it from the model's origin, or save with save_pretrained",
    ) from None
  except OSError as error:
    raise InputError(f'{who}: config.json cannot be read: {error.strerror}') from error
  except ValueError as error:
    raise InputError(f'{who}: config.json is {error}') from error


_QUANTISED_WHY = 'quantised values cannot be subtracted and averaged as weights'
_QUANTISED_FIX = 'give the unquantised model (bfloat16, float16 or float32)'


def _check_config_quantisation(config: Mapping[str, Any], who: str) -> None:
  for field in ('quantization_config', 'compression_config'):
    if quantisation := config.get(field):
      method = (
        quantisation.get('quant_method') if isinstance(quantisation, dict) else None
      )
      raise InputError(
        f'{who}: quantised: config.json has {field} ({method or "method not named"})',
        why=_QUANTISED_WHY,
        fix=_QUANTISED_FIX,
      )


def _check_quantised_tensors(tensors: Mapping[str, TensorRef], who: str) -> None:
  offenders = [
    f'{name}: {ref.dtype} {list(ref.shape)} in {ref.file}'
    for name, ref in tensors.items()
    if ref.dtype in QUANTISED_CODES or _QUANTISED_NAME.search(name)
  ]
  if offenders:
    raise InputError(
      f'{who}: quantised: {len(offenders)} tensors hold 8-bit floats or parts of '
      'quantised weights',
      offenders,
      why=_QUANTISED_WHY,
      fix=_QUANTISED_FIX,
    )


def _is_side_file(name: str) -> bool:
  return not (
    name in _OWN_FILES
    or name.endswith(('.safetensors', '.index.json', *FOREIGN_SUFFIXES))
  )


def _folder_warnings(names: list[str], folders: list[str], who: str) -> list[str]:
  """What a user should know about the files that are not safetensors."""
  warnings = []
  if not TOKENIZER_FILES.intersection(names):
    warnings.append(f'{who}: no tokenizer files')
  foreign = [name for name in names if name.endswith(FOREIGN_SUFFIXES)]
  if foreign:
    warnings.append(f'{who}: neither read nor copied: {", ".join(foreign)}')
  if folders:
    warnings.append(f'{who}: sub-folders are not copied: {", ".join(folders)}')
  return warnings
