"""Exact ResMerge by a full SVD of every update: slow, literal, its own code.

Run as a process: `python -m resmerge_jax.bench.reference JSON` with the object
{"base": folder, "experts": [folder, ...], "layers": n, "output": file}. It merges the
tensors of the first n layers one after the other, in float32 as the paper's script
does, and shares no arithmetic with the merge that it is compared with. The SVDs of the
experts run side by side: with one BLAS thread each (OPENBLAS_NUM_THREADS=1, before the
start) that is faster than one SVD with all threads, several times on a busy machine.

Equation numbers are those of arXiv 2606.02252. D_i is the update of expert i, H_i its
head of rank one, R_i its residual.
"""

import itertools
import json
import math
import os
import pathlib
import re
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from resmerge_jax.checkpoint.format import encode_header, read_header
from resmerge_jax.types import DTYPES, TensorRef

EPS = 1e-8
BETA_MIN, BETA_MAX = 0.7, 1.0
RHO = 0.2
ATTENTION_SCALE, FFN_SCALE = 1.0, 0.25

Matrix = np.ndarray


def dot(x: Matrix, y: Matrix) -> float:
  """<x, y>, summed in float64: sums of 10^8 terms need it."""
  return float(np.sum(x * y, dtype=np.float64))


def norm(x: Matrix) -> float:
  return math.sqrt(dot(x, x))


def cos(x: Matrix, y: Matrix) -> float:
  return dot(x, y) / (norm(x) * norm(y) + EPS)


def head_of(delta: Matrix) -> Matrix:
  """The best approximation of rank one, from all singular triplets."""
  u, sigma, vt = np.linalg.svd(delta, full_matrices=False)
  return (u[:, :1] * sigma[:1]) @ vt[:1]


def resmerge(deltas: Sequence[Matrix], heads: Sequence[Matrix], scale: float) -> Matrix:
  """The update A + C of Eq. 16 for the updates of one matrix; `scale` of its family."""
  residuals = [delta - head for delta, head in zip(deltas, heads, strict=True)]  # 6
  backbone = consensus(residuals, scale)
  agreement = mean([max(cos(x, y), 0.0) for x, y in pairs(heads)])  # 14
  head = sum(heads[1:], heads[0]) / len(heads)
  budget = RHO * agreement * norm(backbone)  # 15
  return backbone + np.float32(budget / (norm(head) + EPS)) * head


def consensus(residuals: Sequence[Matrix], scale: float) -> Matrix:
  """The backbone A, Eqs. 7 to 12."""
  norms = [norm(r) for r in residuals]
  q = [r / np.float32(n + EPS) for r, n in zip(residuals, norms, strict=True)]
  total = sum(q[1:], q[0])
  source = total / np.float32(norm(total) + EPS)  # 7
  s_mapped = (mean([cos(x, y) for x, y in pairs(q)]) + 1) / 2
  c_mapped = (mean([cos(x, source) for x in q]) + 1) / 2  # 8
  score = scale * (s_mapped + c_mapped) / 2
  beta = BETA_MAX - (BETA_MAX - BETA_MIN) * score  # 9
  return np.float32(c_mapped**beta * mean(norms)) * source  # 10 to 12


def pairs(items: Sequence[Matrix]) -> Iterator[tuple[Matrix, Matrix]]:
  return itertools.combinations(items, 2)


def mean(values: Sequence[float]) -> float:
  """1 for no values: a single expert agrees with itself."""
  return sum(values) / len(values) if values else 1.0


class Folder:
  """Tensors of a model's folder, in float32; bfloat16 and what numpy knows."""

  def __init__(self, path: str):
    self.refs: dict[str, tuple[pathlib.Path, TensorRef]] = {}
    for file in sorted(pathlib.Path(path).glob('*.safetensors')):
      self.refs |= {n: (file, ref) for n, ref in read_header(file).tensors.items()}

  def read(self, name: str) -> Matrix:
    file, ref = self.refs[name]
    with file.open('rb') as opened:
      opened.seek(ref.start)
      stored = np.fromfile(opened, np.uint8, ref.nbytes)
    if ref.dtype == 'BF16':  # the upper half of a float32
      bits = stored.view(np.uint16).astype(np.uint32) << 16
      return bits.view(np.float32).reshape(ref.shape)
    return stored.view(DTYPES[ref.dtype]).astype(np.float32).reshape(ref.shape)


def run(
  base: str, experts: Sequence[str], layers: int, output: str
) -> dict[str, float]:
  """Merges and writes; seconds in the SVD and in all, and how many matrices."""
  start = time.perf_counter()
  folder, *others = (Folder(path) for path in (base, *experts))
  wanted = [ref for _, ref in folder.refs.values() if _layer_of(ref.name) < layers]
  header, refs = encode_header(wanted, {'format': 'pt'})
  spent = {'svd': 0.0, 'matrices': 0.0}
  pathlib.Path(output).parent.mkdir(parents=True, exist_ok=True)
  with open(output, 'xb') as file, ThreadPoolExecutor(os.cpu_count()) as pool:
    file.write(header)
    for ref in refs:
      start_value = folder.read(ref.name)
      deltas = [other.read(ref.name) - start_value for other in others]
      if len(ref.shape) == 2:
        begin = time.perf_counter()
        heads = list(pool.map(head_of, deltas))
        spent['svd'] += time.perf_counter() - begin
        spent['matrices'] += 1
        scale = ATTENTION_SCALE if 'self_attn' in ref.name else FFN_SCALE
        update = resmerge(deltas, heads, scale)
      else:
        update = sum(deltas[1:], deltas[0]) / len(deltas)
      file.write((start_value + update).astype(DTYPES[ref.dtype]).tobytes())
    file.flush()
    os.fsync(file.fileno())
  return {**spent, 'total': time.perf_counter() - start}


def _layer_of(name: str) -> float:
  """Number of the layer that a tensor belongs to; infinity for none."""
  found = re.search(r'\.layers\.(\d+)\.', name)
  return int(found[1]) if found else math.inf


def main(argv: Sequence[str]) -> None:
  """Does the job of `argv[0]` and prints the seconds of its phases."""
  print(json.dumps(run(**json.loads(argv[0]))))


if __name__ == '__main__':
  main(sys.argv[1:])
