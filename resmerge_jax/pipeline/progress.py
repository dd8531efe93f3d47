"""Progress in bytes: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import threading
import time
from typing import TextIO

from tqdm import tqdm

from resmerge_jax.sizes import format_size

LINE_EVERY_S = 10.0


class Progress:
  """Counts bytes read; shows the tensor that was finished last and the time left."""

  def __init__(self, total_bytes: int, stream: TextIO | None = None):
    self._total = total_bytes
    self._done = 0
    self._start = self._last = time.monotonic()
    self._stream = stream or sys.stderr
    self._lock = threading.Lock()
    self._bar = None
    if self._stream.isatty():
      self._bar = tqdm(
        total=total_bytes, unit='B', unit_scale=True, file=self._stream, leave=False
      )

  def __call__(self, label: str, nbytes: int) -> None:
    """One step of `nbytes` is written; `label` names its first tensor."""
    with self._lock:
      self._done += nbytes
      now = time.monotonic()
      if self._bar is not None:
        self._bar.set_postfix_str(label, refresh=False)
        self._bar.update(nbytes)
      elif now - self._last >= LINE_EVERY_S:
        self._last = now
        left = (now - self._start) * (self._total / max(self._done, 1) - 1)
        print(
          f'{self._done / max(self._total, 1):4.0%} of {format_size(self._total)}, '
          f'about {left:.0f} s left, at {label}',
          file=self._stream,
          flush=True,
        )

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()
