"""Collectives as they stand in the text of a compiled program."""

from resmerge_jax.pipeline.hlo import Collective, collectives

TEXT = """HloModule jit__merge_stack, is_scheduled=true, entry_computation_layout={}

%step (p: f32[3,4,896]) -> f32[1,3,4,896] {
  %p = f32[3,4,896]{2,1,0} parameter(0)
  ROOT %a.13 = f32[1,3,4,896]{3,2,1,0:T(4,128)S(1)} all-reduce(%p), channel_id=1
}

%begin (p: f32[3]) -> f32[3] {
  %a.7 = f32[6]{0:T(1,128)S(1)} all-gather(%p), channel_id=7, dimensions={0}
  ROOT %c = f32[3]{0} custom-call(%a.7), custom_call_target="AsyncCollectiveStart"
}

%end (p: f32[3]) -> f32[3] {
  %a.8 = f32[6]{0:T(1,128)S(1)} all-gather(%p), channel_id=7, dimensions={0}
  ROOT %c.1 = f32[3]{0} custom-call(%a.8), custom_call_target="AsyncCollectiveDone"
}

%cycle (q: f32[5]) -> f32[5] {
  %w.1 = f32[5]{0} while(%q), condition=%more, body=%step
  %a.10 = (f32[5,1]{0,1:T(1,128)}, /*index=1*/bf16[3]{0}) all-reduce-start(%w.1), channel_id=3
  ROOT %d.10 = f32[7]{0} all-reduce-done(%a.10)
}

%more (q: f32[5]) -> pred[] {
  ROOT %l = pred[] constant(true)
}

ENTRY %main.1 (x: f32[5]) -> f32[5] {
  %x = f32[5]{0} parameter(0)
  %f.1 = f32[3]{0} fusion(%x), kind=kCustom, calls=%begin
  %w.2 = f32[5]{0} while(%x), condition=%more, body=%cycle
  %g.1 = pred[2,8]{1,0} all-gather(%p)
  ROOT %f.2 = f32[3]{0} fusion(%all-reduce.3), kind=kCustom, calls=%end
}
"""


def test_bytes_and_loops():
  assert collectives(TEXT) == (
    Collective('all-reduce', 4 * 3 * 4 * 896, 'solver step'),
    Collective('all-gather', 4 * 6, 'once'),  # begun and ended apart, counted once
    Collective('all-reduce', 4 * 5 + 2 * 3, 'solver cycle'),
    Collective('all-gather', 16, 'once'),
  )
