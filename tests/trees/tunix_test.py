"""Tunix itself restores what was written in its layout, as it loads safetensors."""

import os

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as classic
import pytest
from flax import nnx
from orbax.checkpoint import v1 as checkpoint

from tests import folders
from tests.trees import models
from tests.trees.models import D, F, H, K, L, N, V

pytest.importorskip('tunix')
pytestmark = pytest.mark.filterwarnings('ignore')  # Tunix gives some of its own


@pytest.mark.parametrize('kind', ['qwen2', 'qwen3', 'llama'])
def test_tunix_restores_its_layout(tmp_path, kind):
  from tunix.models.llama3 import model as llama3
  from tunix.models.llama3 import params as llama3_params
  from tunix.models.qwen2 import model as qwen2
  from tunix.models.qwen2 import params as qwen2_params
  from tunix.models.qwen3 import model as qwen3
  from tunix.models.qwen3 import params as qwen3_params

  from resmerge_jax.checkpoint.folder import open_checkpoint
  from resmerge_jax.writers.convert import convert, prepare_conversion

  model, params, name = {
    'qwen2': (qwen2, qwen2_params, 'Qwen2'),
    'qwen3': (qwen3, qwen3_params, 'Qwen3'),
    'llama': (llama3, llama3_params, 'Llama3'),
  }[kind]
  hf = folders.write_folder(
    tmp_path / 'hf', models.tensors(kind), config=models.config(kind)
  )
  out = tmp_path / 'out'
  made = prepare_conversion(
    open_checkpoint(hf), out, output_format='orbax', orbax_layout='tunix'
  )
  convert(made, lambda *_: None)

  config = model.ModelConfig(
    num_layers=L,
    vocab_size=V,
    embed_dim=D,
    hidden_dim=F,
    num_heads=N,
    head_dim=H,
    num_kv_heads=K,
    rope_theta=10000,
    norm_eps=1e-6,
    **({} if kind == 'llama' else {'param_dtype': ml_dtypes.bfloat16}),
  )
  auto = (jax.sharding.AxisType.Auto,) * 2
  mesh = jax.make_mesh((2, 2), ('fsdp', 'tp'), axis_types=auto)
  with jax.set_mesh(mesh):
    make = getattr(model, name)
    abstract = nnx.state(nnx.eval_shape(lambda: make(config, rngs=nnx.Rngs(0))))
  target = jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, ml_dtypes.bfloat16, sharding=s),
    abstract,
    nnx.get_named_sharding(abstract, mesh),
  )
  want = params.create_model_from_safe_tensors(
    str(hf), config, mesh, dtype=ml_dtypes.bfloat16
  )
  for got in (
    checkpoint.load(out, target),
    classic.StandardCheckpointer().restore(os.path.join(out, 'state'), target=target),
  ):
    jax.tree.map(
      lambda a, b: np.testing.assert_array_equal(
        np.asarray(a).view(np.uint16), np.asarray(b).view(np.uint16)
      ),
      got,
      nnx.state(want),
    )
