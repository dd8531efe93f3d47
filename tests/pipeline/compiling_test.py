"""Which program compiles when: a thread for half of the cores, one more while one waits."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import pytest

from resmerge_jax.pipeline import compiling
from resmerge_jax.pipeline.compiling import Compiling

SOON = 10  # s, for what must happen


class OneTurn(NamedTuple):
  spec: str | None
  own: str | None = None
  measured_of: int | None = None


class Compiler:
  """Stands for XLA: a program is ready once it is let go."""

  def __init__(self):
    self.started: dict[str, threading.Event] = {n: threading.Event() for n in 'abcd'}
    self.ready: dict[str, threading.Event] = {n: threading.Event() for n in 'abcd'}

  def __call__(self, spec: str, _devices: tuple[jax.Device, ...]) -> str:
    self.started[spec].set()
    assert self.ready[spec].wait(SOON)
    return f'program {spec}'

  def running(self) -> str:
    return ''.join(
      n for n in 'abcd' if self.started[n].is_set() and not self.ready[n].is_set()
    )


@pytest.fixture
def compiler(monkeypatch):
  found = Compiler()
  monkeypatch.setattr(compiling, 'compile_kernel', found)
  monkeypatch.setattr(
    compiling, 'compile_coefficients', lambda spec, _: f'refit {spec}'
  )
  monkeypatch.setattr(compiling, 'cores', lambda: 2)
  return found


def test_one_at_a_time_and_one_more_while_the_loop_waits(compiler):
  turns = [[OneTurn(n) for n in 'aab'], [OneTurn(None), OneTurn('c'), OneTurn('d')]]
  with contextlib.ExitStack() as cleanup:

    def pool(n: int) -> ThreadPoolExecutor:
      return cleanup.enter_context(ThreadPoolExecutor(n))

    loop = pool(1)
    found = Compiling(turns, tuple(jax.devices('cpu')[:1]), pool)
    assert compiler.started['a'].wait(SOON)
    assert compiler.running() == 'a'  # the loop computes something else
    waiting = loop.submit(found.kernel, 'a')
    assert compiler.started['b'].wait(SOON)
    assert compiler.running() == 'ab'
    compiler.ready['a'].set()
    assert waiting.result(SOON) == 'program a'
    assert compiler.started['c'].wait(SOON)  # the thread that compiled a
    waiting = loop.submit(found.kernel, 'c')
    compiler.ready['c'].set()
    assert waiting.result(SOON) == 'program c'
    for name in 'bd':
      compiler.ready[name].set()
    assert [found.kernel(n) for n in 'abcd'] == [f'program {n}' for n in 'abcd']


def test_refits_compile_once(compiler):
  turns = [[OneTurn('a'), OneTurn('b', 'b', 0), OneTurn('c', 'b', 0)]] * 2
  for ready in compiler.ready.values():
    ready.set()
  with contextlib.ExitStack() as cleanup:
    found = Compiling(
      turns,
      tuple(jax.devices('cpu')[:1]),
      lambda n: cleanup.enter_context(ThreadPoolExecutor(n)),
    )
    assert found.refit(turns[0][0]) is None
    assert found.refit(turns[0][1]) == found.refit(turns[0][2]) == 'refit b'
    assert found.kernel('c') == 'program c'
