"""Model folders behind an address: gs://BUCKET/PATH, s3://BUCKET/PATH, hf://OWNER/NAME.

They look like paths as far as a checkpoint needs it (`folder / name`, `read_bytes`), and
fail like them: with OSError. Nothing is kept on disk. What talks to the network is
imported for an address only.
"""

import dataclasses
import itertools
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Protocol

from resmerge_jax.errors import InputError, StoppedError

# A request of this size takes longer than it waits for its first byte, and a read
# thread holds two such blocks: what the library received, and its copy.
PART_BYTES = 8 * 2**20
_SCHEME = re.compile(r'(\w[\w+.-]*):/')
_NO_NAME = re.compile(r'/+|\.|\.\.|~.*|.*:')  # of no folder, or not told by its path
_SIGN_IN = {
  'gs': '`gcloud auth application-default login`, or name a key file in '
  'GOOGLE_APPLICATION_CREDENTIALS',
  's3': 'AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE and ~/.aws; a '
  "store that is not Amazon's needs AWS_ENDPOINT_URL",
  'hf': '`hf auth login` or HF_TOKEN, once the terms of a gated model are accepted',
}


class Store(Protocol):
  """The files of one remote folder. Everything but `address` may raise OSError."""

  @property
  def address(self) -> str:
    """Of the folder, without a slash at its end; of the hub with the commit."""

  def names(self) -> list[str]:
    """All files below the folder; those of sub-folders with slashes."""

  def read(self, name: str, begin: int, end: int | None) -> tuple[bytes, str] | None:
    """Bytes [begin, end) and the file's version; None if it has no such bytes."""

  def version(self, name: str) -> str:
    """What changes when somebody writes the file."""


@dataclasses.dataclass(frozen=True)
class RemoteFolder:
  """`files` are the names at its top, `folders` those of sub-folders, both sorted."""

  store: Store
  name: str
  files: tuple[str, ...]
  folders: tuple[str, ...]

  def __str__(self) -> str:
    return self.store.address

  def __truediv__(self, name: str) -> 'RemoteFile':
    return RemoteFile(self, name)


@dataclasses.dataclass(frozen=True)
class RemoteFile:
  """A file of a remote folder. Everything may raise OSError."""

  folder: RemoteFolder
  name: str

  def __str__(self) -> str:
    return f'{self.folder}/{self.name}'

  def exists(self) -> bool:
    """Whether it was there when the folder was listed."""
    return self.name in self.folder.files

  def read_bytes(self) -> bytes:
    found = self.folder.store.read(self.name, 0, None)
    return b'' if found is None else found[0]

  def read(self, begin: int, end: int) -> tuple[bytes, str]:
    """At most PART_BYTES of [begin, end), and the version of the file they are from."""
    end = min(end, begin + PART_BYTES)
    found = self.folder.store.read(self.name, begin, end)
    if found is None:
      end = min(end, self.size())
      found = self.folder.store.read(self.name, begin, end) if begin < end else None
    return (b'', self.version()) if found is None else found

  def version(self) -> str:
    return self.folder.store.version(self.name)

  def size(self, likely: int = 0) -> int:
    """Two requests if it is `likely`; stores tell no sizes, so others are searched."""
    if not self._has(likely) and (not likely or self._has(likely - 1)):
      return likely
    step = 1
    while self._has(step - 1):
      step *= 2
    low, high = step // 2, step
    while high - low > 1:
      middle = (low + high) // 2
      low, high = (middle, high) if self._has(middle - 1) else (low, middle)
    return low

  def _has(self, byte: int) -> bool:
    return self.folder.store.read(self.name, byte, byte + 1) is not None


def scheme_of(path: str | os.PathLike) -> str | None:
  """'gs', 's3' or 'hf'; None for a path on this machine.

  Raises:
    InputError: an address of another kind.
  """
  text = os.fspath(path)
  match = _SCHEME.match(text)
  if match is None:
    return None
  if match[1] in _SIGN_IN and isinstance(path, pathlib.PurePath):
    raise InputError(
      f'{text}: an address given as a path, which has lost one of its slashes',
      fix=f'give it as text: {match[1]}://...',
    )
  if not text.startswith(f'{match[1]}://'):
    return None
  if match[1] not in _SIGN_IN:
    raise InputError(
      f'{text}: addresses of this kind are not read',
      fix='give a local folder, gs://BUCKET/PATH, s3://BUCKET/PATH or '
      'hf://OWNER/NAME[@REVISION]',
    )
  return match[1]


def folder_name(path: str | os.PathLike) -> str:
  """The last part of a path or address, without the revision."""
  return _without_revision(path).name


def telling_names(paths: Sequence[str | os.PathLike]) -> tuple[str | None, ...]:
  """Names for folders some of which are called alike: of the nearest above that differ.

  maths/step_400 and code/step_400 are maths and code. None: the folder's own name, which
  is all there is to tell where no such names are all different.
  """
  names = [folder_name(path) for path in paths]
  parts = [_named_parts(path) for path in paths]
  alike = [i for i, name in enumerate(names) if names.count(name) > 1]
  for above in range(1, min((len(parts[i]) for i in alike), default=0)):
    found = [parts[i][above] if i in alike else name for i, name in enumerate(names)]
    if len(set(found)) == len(found):
      return tuple(f if i in alike else None for i, f in enumerate(found))
  return (None,) * len(names)


def _named_parts(path: str | os.PathLike) -> list[str]:
  """The parts of a path or address from the last on, up to one that is no name."""
  parts = reversed(_without_revision(path).parts)
  return list(itertools.takewhile(lambda part: not _NO_NAME.fullmatch(part), parts))


def _without_revision(path: str | os.PathLike) -> pathlib.PurePath:
  text = os.fspath(path)
  return pathlib.PurePath(text.partition('@')[0] if scheme_of(path) == 'hf' else text)


def check_local(path: str | os.PathLike, what: str) -> None:
  """Raises InputError for an address where only a local folder will do."""
  if scheme_of(path) is not None:
    raise InputError(
      f'{what} {path}: only local folders are written',
      why='a merge writes into its files at many places, which object stores cannot do',
      fix='give a local folder, and copy it when it is complete',
    )


def open_remote(address: str, role: str) -> RemoteFolder:
  """Lists the folder at `address`; of the hub, at the commit of now.

  Raises:
    InputError: no such folder, no permission, or no package that reads it;
      `StoppedError`: the store does not answer.
  """
  scheme, _, place = address.partition('://')
  who, sign_in = f'{role} {address}', f'sign in: {_SIGN_IN[scheme]}'
  missing = 'no such folder'
  try:
    store = _store(scheme, place.rstrip('/'), who)
    names = store.names()
  except PermissionError as error:
    raise InputError(f'{who}: access denied: {error.strerror}', fix=sign_in) from error
  except FileNotFoundError as error:
    names, missing = [], str(error.strerror) if scheme == 'hf' else missing
  except OSError as error:
    raise StoppedError(
      f'{who}: cannot be listed: {error.strerror}',
      fix='see that the store can be reached, then run the same command',
    ) from error
  if not names:
    raise InputError(
      f'{who}: {missing}', fix=f'check the address; if it is private, {sign_in}'
    )
  files = sorted(name for name in names if '/' not in name)
  folders = sorted({name.partition('/')[0] for name in names if '/' in name})
  return RemoteFolder(store, folder_name(address), tuple(files), tuple(folders))


def _store(scheme: str, place: str, who: str) -> Store:
  if scheme == 'hf':
    from resmerge_jax.checkpoint.hub import Hub

    return Hub(place, who)
  from resmerge_jax.checkpoint.object_store import ObjectStore

  return ObjectStore(scheme, place, who)
