"""Commands that merge start themselves again, once, with what libraries read at start."""

import os
import platform
import subprocess
import sys

import pytest

from resmerge_jax.cli import runtime
from resmerge_jax.sizes import cores


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


@pytest.mark.parametrize(
  ('given', 'method', 'coordinator', 'devices'),
  [
    ({}, 'iso_c', None, cores()),
    ({}, 'resmerge', None, 1),
    ({}, 'iso_c', 'host:1', 1),
    ({'JAX_NUM_CPU_DEVICES': '3'}, 'iso_c', None, 3),
    ({'XLA_FLAGS': '--xla_force_host_platform_device_count=3'}, 'iso_c', None, 3),
  ],
)
def test_eigenvalue_problems_have_all_cores(given, method, coordinator, devices):
  """In processes of their own: JAX's devices are chosen once."""
  env = {k: v for k, v in os.environ.items() if k != 'JAX_NUM_CPU_DEVICES'}
  done = subprocess.run(
    [sys.executable, '-c', _DEVICES.format(method=method, coordinator=coordinator)],
    env=env | given,
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.stdout.split(), done.stderr) == ([str(devices)], ''), done


_DEVICES = """
import jax
from resmerge_jax.cli.runtime import use_cores
from resmerge_jax.config import config_from
values = dict(base='b', experts=['a', 'c'], output='o', method=dict(name='{method}'))
use_cores({{'setting': config_from(values)}}, {coordinator!r})
print(jax.device_count())
"""
