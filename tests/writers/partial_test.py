"""What one process has made must be seen by the others."""

import threading

import pytest

from resmerge_jax.errors import InputError
from resmerge_jax.writers import partial


def test_a_folder_that_shows_late(tmp_path):
  path = tmp_path / 'a' / 'b'
  maker = threading.Timer(0.2, path.mkdir, kwargs={'parents': True})
  maker.start()
  partial.await_shared(path)
  assert path.is_dir()
  maker.join()


def test_a_folder_that_is_not_shared(tmp_path, monkeypatch):
  monkeypatch.setattr(partial, 'SHARED_S', 0.1)
  path = tmp_path / 'a' / 'b'
  with pytest.raises(InputError) as caught:
    partial.await_shared(path)
  assert str(caught.value).splitlines() == [
    f'{path} is not there for this process',
    'Why it matters: process 0 has made it, and each process writes its part in there',
    'What to do: choose an output on a file system that all processes share, under one '
    'path',
  ]
