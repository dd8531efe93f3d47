"""Folders of Google Cloud Storage and of S3, read through TensorStore.

TensorStore comes with Orbax, needs no package per store, sends byte ranges from threads
of its own, and tells with every read which generation (gs) or ETag (s3) it is of. It
signs in as its documentation says: https://google.github.io/tensorstore/kvstore
"""

import errno
import os
from typing import Any

import tensorstore

from resmerge_jax.checkpoint.failed_request import failed
from resmerge_jax.errors import InputError

# About half a minute; then the run stops, and --resume continues it.
_RETRIES = {'max_retries': 6, 'initial_delay': '500ms', 'max_delay': '16s'}
_TIMEOUT_S = 300  # of a request with its retries: a connection that died says nothing
_CODES = {
  'PERMISSION_DENIED': errno.EACCES,
  'UNAUTHENTICATED': errno.EACCES,
  'NOT_FOUND': errno.ENOENT,
}
_OUT_OF_RANGE = 'OUT_OF_RANGE'


class ObjectStore:
  """The folder `place`, BUCKET or BUCKET/PATH, of 'gs' or 's3'."""

  def __init__(self, scheme: str, place: str, who: str):
    self._scheme, self._place = scheme, place
    bucket, _, path = place.partition('/')
    driver = {'gs': 'gcs', 's3': 's3'}[scheme]
    spec: dict[str, Any] = {
      'driver': driver,
      'bucket': bucket,
      'path': f'{path}/' if path else '',
      'context': {f'{driver}_request_retries': _RETRIES},
      **(_s3_place() if scheme == 's3' else {}),
    }
    try:
      self._files = tensorstore.KvStore.open(spec).result(_TIMEOUT_S)
    except ValueError as error:  # asks nobody yet
      raise InputError(
        f'{who}: not the address of a folder: {failed(error, place).strerror}',
        fix=f'write {scheme}://BUCKET/PATH',
      ) from error

  @property
  def address(self) -> str:
    return f'{self._scheme}://{self._place}'

  def names(self) -> list[str]:
    try:
      keys = self._files.list().result(_TIMEOUT_S)
    except Exception as error:
      raise _os_error(error, self.address) from error
    if not keys:  # what a listing that gs refused looks like; a read tells
      self.version('config.json')
    names = [key.decode(errors='replace') for key in keys]
    return [name for name in names if name and not name.endswith('/')]

  def read(self, name: str, begin: int, end: int | None) -> tuple[bytes, str] | None:
    try:
      found = self._files.read(name, byte_range=slice(begin, end)).result(_TIMEOUT_S)
    except Exception as error:
      if str(error).startswith(_OUT_OF_RANGE):
        return None
      raise _os_error(error, f'{self.address}/{name}') from error
    if found.state != 'value':
      file = f'{self.address}/{name}'
      raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), file)
    return found.value, self._version_of(found.stamp.generation)

  def version(self, name: str) -> str:
    found = self.read(name, 0, 0)  # asks for the object's description only
    assert found is not None, name
    return found[1]

  def _version_of(self, generation: bytes) -> str:
    """The store's own word: TensorStore puts a byte before it."""
    word = generation[1:]
    if self._scheme == 'gs':
      return str(int.from_bytes(word, 'little'))
    return word.decode(errors='replace').strip('"')


def _s3_place() -> dict[str, Any]:
  """Where S3 is, in the words of Amazon's own tools."""
  found: dict[str, Any] = {}
  if endpoint := _first_of('AWS_ENDPOINT_URL_S3', 'AWS_ENDPOINT_URL'):
    found['endpoint'] = endpoint
    if region := _first_of('AWS_REGION', 'AWS_DEFAULT_REGION'):
      found['aws_region'] = region  # Amazon tells it of each bucket
  if os.environ.get('AWS_ACCESS_KEY_ID'):  # then nothing is said of missing files
    found['aws_credentials'] = {'type': 'environment'}
  return found


def _first_of(*variables: str) -> str:
  return next((v for name in variables if (v := os.environ.get(name))), '')


def _os_error(error: Exception, file: str) -> OSError:
  """TensorStore raises ValueError for everything; its text begins with a code."""
  code = str(error).partition(':')[0]
  if isinstance(error, TimeoutError):
    return OSError(errno.ETIMEDOUT, f'no answer within {_TIMEOUT_S} s', file)
  return failed(error, file, _CODES.get(code, errno.EIO))
