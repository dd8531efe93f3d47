"""Models of the Hugging Face Hub, read through huggingface_hub.

The revision is resolved to a commit once, so what is read cannot change. Bytes come by
HTTP ranges from where the hub sends us; the token stays with the hub.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from resmerge_jax.checkpoint.failed_request import failed
from resmerge_jax.errors import InputError

_PLACE = re.compile(r'[\w.-]+/[\w.-]+')
_NO_SUCH_RANGE = 416


class Hub:
  """The model `place`, OWNER/NAME or OWNER/NAME@REVISION, at the commit of now."""

  def __init__(self, place: str, who: str):
    self._repo, _, revision = place.partition('@')
    if not _PLACE.fullmatch(self._repo):
      raise InputError(
        f'{who}: not the address of a model', fix='write hf://OWNER/NAME[@REVISION]'
      )
    try:
      import huggingface_hub
      import huggingface_hub.constants
      import huggingface_hub.errors
      import huggingface_hub.utils
    except ImportError:
      raise InputError(
        f'{who}: the package huggingface_hub is not installed',
        why='it finds and reads the files of the hub',
        fix="pip install 'resmerge-jax[hf]'",
      ) from None
    self._hub, self._api = huggingface_hub, huggingface_hub.HfApi()
    with self._explained(f'hf://{place}'):
      model = self._api.model_info(self._repo, revision=revision or None)
      self._commit = str(model.sha)
      self._names = [file.rfilename for file in model.siblings or ()]

  @property
  def address(self) -> str:
    return f'hf://{self._repo}@{self._commit}'

  def names(self) -> list[str]:
    return self._names

  def version(self, name: str) -> str:
    del name
    return self._commit

  def read(self, name: str, begin: int, end: int | None) -> tuple[bytes, str] | None:
    if begin == end:
      return b'', self._commit
    url = self._hub.hf_hub_url(
      self._repo, name, revision=self._commit, endpoint=self._api.endpoint
    )
    headers = self._hub.utils.build_hf_headers()
    if end is not None:
      headers['Range'] = f'bytes={begin}-{end - 1}'
    with self._explained(f'{self.address}/{name}'):
      answer = self._hub.utils.http_backoff(
        'GET', url, headers=headers, timeout=self._hub.constants.HF_HUB_DOWNLOAD_TIMEOUT
      )
      if answer.status_code == _NO_SUCH_RANGE:
        return None
      self._hub.utils.hf_raise_for_status(answer)
    content = answer.content
    if end is not None and answer.status_code == 200:  # the range was ignored
      content = content[begin:end]
    if end is not None and len(content) < end - begin:
      return None
    return content, self._commit

  @contextmanager
  def _explained(self, file: str) -> Iterator[None]:
    """As OSError, whatever HTTP library this version of the package uses."""
    errors = self._hub.errors
    try:
      yield
    except errors.GatedRepoError as error:  # is a RepositoryNotFoundError
      raise failed(error, file, errno.EACCES) from error
    except errors.RepositoryNotFoundError as error:
      raise OSError(errno.ENOENT, 'no such model', file) from error
    except errors.RevisionNotFoundError as error:
      raise OSError(errno.ENOENT, 'no such revision', file) from error
    except errors.EntryNotFoundError as error:
      raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), file) from error
    except Exception as error:
      answer = getattr(error, 'response', None)
      denied = getattr(answer, 'status_code', None) in (401, 403)
      raise failed(error, file, errno.EACCES if denied else errno.EIO) from error
