"""Commands that merge start themselves again, once, with what libraries read at start."""

import os
import platform
import sys

import pytest

from resmerge_jax.cli import runtime


@pytest.fixture
def started(monkeypatch) -> list[tuple]:
  """Arguments of each new start, of which nothing comes here."""
  monkeypatch.setattr(platform, 'libc_ver', lambda: ('glibc', '2.36'))
  monkeypatch.setenv(runtime.MALLOC, 'given')
  monkeypatch.delenv(runtime.PATIENCE)
  found: list[tuple] = []
  monkeypatch.setattr(os, 'execv', lambda *args: found.append(args))
  return found


def test_what_the_user_has_set_stands_and_the_rest_is_set(started):
  runtime.tune_libraries()
  command = [sys.executable, *sys.orig_argv[1:]]
  assert started == [(sys.executable, command)]
  assert os.environ[runtime.MALLOC] == 'given'
  assert os.environ[runtime.PATIENCE] == runtime.SHORTEST
  runtime.tune_libraries()  # as the command started again does
  assert len(started) == 1


def test_other_c_libraries_have_no_such_settings(started, monkeypatch):
  monkeypatch.setattr(platform, 'libc_ver', lambda: ('', ''))
  runtime.tune_libraries()
  assert started == []
