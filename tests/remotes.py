"""Folders of a test behind addresses of every kind (tests/object_server.py)."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

from tests import object_server
from tests.object_server import Server

SCHEMES = ('gs', 's3', 'hf')
COMMIT, LATER = 'a' * 40, 'b' * 40
TOKEN = 'hf_secret'


class Remote(NamedTuple):
  """A store at work: its servers, and where its files lie."""

  scheme: str
  root: pathlib.Path
  server: Server
  files: Server  # which sends their bytes

  def put(self, folder: pathlib.Path, commit: str = COMMIT) -> str:
    """Copies `folder` into the store; returns its address."""
    if self.scheme == 'hf':
      shutil.copytree(folder, self.root / 'me' / folder.name / commit)
      return f'hf://me/{folder.name}'
    shutil.copytree(folder, self.root / 'bucket' / 'models' / folder.name)
    return f'{self.scheme}://bucket/models/{folder.name}'

  def path(self, address: str, commit: str = COMMIT) -> pathlib.Path:
    """Where the files of an address lie."""
    place = address.partition('://')[2]
    return self.root / place / commit if self.scheme == 'hf' else self.root / place


@contextlib.contextmanager
def remote(scheme: str, root: pathlib.Path) -> Iterator[Remote]:
  """A store of this kind, to which this process' clients are sent."""
  root.mkdir(parents=True)
  kinds = {'gs': object_server.GoogleStorage, 's3': object_server.S3}
  kind = kinds.get(scheme, object_server.Hub)
  with contextlib.ExitStack() as stack:
    server = stack.enter_context(object_server.serving(root, kind))
    files = server
    if scheme == 'hf':
      from huggingface_hub import constants

      files = stack.enter_context(object_server.serving(root, object_server.Cdn))
      server.cdn = files
      server.refs['main'] = COMMIT
      template = f'{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}'
      stack.enter_context(  # HF_ENDPOINT is read when the package is imported
        mock.patch.multiple(
          constants, ENDPOINT=server.url, HUGGINGFACE_CO_URL_TEMPLATE=template
        )
      )
    variables = {
      'gs': {
        'TENSORSTORE_GCS_HTTP_URL': server.url,
        'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'secret',  # or it asks Google's machines
      },
      's3': {
        'AWS_ENDPOINT_URL': server.url,
        'AWS_EC2_METADATA_DISABLED': 'true',
        'AWS_ACCESS_KEY_ID': 'key',
        'AWS_SECRET_ACCESS_KEY': 'secret',
      },
      'hf': {'HF_TOKEN': TOKEN},
    }
    stack.enter_context(mock.patch.dict(os.environ, variables[scheme]))
    yield Remote(scheme, root, server, files)
