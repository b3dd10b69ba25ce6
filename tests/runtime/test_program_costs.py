"""What is read off compiled programs, against what they were made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metricjax.runtime import mesh, program_costs

LOOP = """\
HloModule jit_f, entry_computation_layout={()->f32[]}

%condition (state: (s32[], f32[4,8])) -> pred[] {
  %state = (s32[], f32[4,8]{1,0}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%state), index=0
  %bound = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[] compare(%counter, %bound), direction=LT
}

%inside (p: bf16[4,8]) -> bf16[16,8] {
  ROOT %all-gather.3 = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), dimensions={0}
}

%body (state: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %sums = f32[4,8]{1,0} all-reduce(%x), to_apply=%add
  %gathered = bf16[16,8]{1,0} fusion(%y), kind=kLoop, calls=%inside
}

ENTRY %main (x: f32[4,8]) -> f32[] {
  %while.1 = (s32[], f32[4,8]) while(%start), condition=%condition, body=%body
  %both = (f32[10]{0}, s32[2]{0}) all-reduce(%a, %b), to_apply=%add
  %scattered = f32[6]{0} reduce-scatter(%c), dimensions={0}, to_apply=%add
  %begun = (f32[3]{0}, f32[12]{0}) all-gather-start(%d), dimensions={0}
  %ended = f32[12]{0} all-gather-done(%begun)
  %moved = (f32[7]{0}, f32[7]{0}, u32[]{:S(2)}, u32[]) collective-permute-start(%e)
  %done = f32[7]{0} collective-permute-done(%moved), metadata={op_name="all-gather("}
}
"""


def test_traffic_of_a_program_written_by_hand():
    found = program_costs.traffic(LOOP, 4)
    assert found.sent == {
        "all-reduce": 5 * 2 * 3 / 4 * 128 + 2 * 3 / 4 * 48,
        "all-gather": 5 * 3 / 4 * 256 + 3 / 4 * 48,
        "reduce-scatter": 3 / 4 * 4 * 24,
        "collective-permute": 28,
    }
    assert found.total == sum(found.sent.values())
    assert found.repeated == 5 * (2 * 3 / 4 * 128 + 3 / 4 * 256)
    assert found.gathered == 256
    assert found.counts["all-gather"] == 2 and found.counts["all-reduce"] == 2
    known = LOOP.replace("body=%body", 'body=%body, x={"known_trip_count":{"n":"9"}}')
    assert program_costs.traffic(known, 4).repeated == found.repeated / 5 * 9
    endless = LOOP.replace("direction=LT", "direction=NE")
    assert program_costs.traffic(endless, 4).repeated == 0


# As TPU's compiler writes a gather that goes on beside other work: in all its parts.
SPREAD = """\
%begin (p: f32[4,8]) -> (f32[4,8], f32[16,8]) {
  %gather.1 = f32[16,8]{1,0} all-gather(%p), channel_id=30, dimensions={0}
  ROOT %begun = (f32[4,8], f32[16,8]) custom-call(%gather.1), custom_call_target="Start"
}

%beside (p: f32[4,8]) -> (f32[4,8], f32[16,8]) {
  %gather.2 = f32[16,8]{1,0} all-gather(%p), channel_id=30, dimensions={0}
  ROOT %both = (f32[4,8], f32[16,8]) tuple(%work, %gather.2)
}

ENTRY %main (x: f32[4,8]) -> f32[16,8] {
  %start = (f32[4,8], f32[16,8]) fusion(%x), kind=kCustom, calls=%begin
  %work = (f32[4,8], f32[16,8]) fusion(%x), kind=kOutput, calls=%beside
  ROOT %other = f32[16,8]{1,0} all-gather(%y), channel_id=31, dimensions={0}
}
"""


def test_a_collective_in_several_parts_counts_once():
    found = program_costs.traffic(SPREAD, 4)
    assert found.counts == {"all-gather": 2}
    assert found.total == 2 * 3 / 4 * 512


def test_traffic_of_a_compiled_program():
    """A sum over devices in a loop of 5 turns, and one that gathers outside it."""
    devices = mesh.make_mesh()
    count = devices.size

    def function(weights, rows):
        def turn(weights, part):
            return weights + part.T @ jnp.tanh(part @ weights), part.sum()

        parts = rows.reshape(-1, 5, 16).swapaxes(0, 1)
        weights, sums = jax.lax.scan(turn, weights, parts)
        return weights, sums, (rows @ rows.T).max(axis=1)

    split, whole = mesh.split(devices), mesh.replicated(devices)
    program = jax.jit(
        function, in_shardings=(whole, split), out_shardings=(whole, whole, split)
    )
    shapes = [(16, 16), (5 * 4 * count, 16)]
    abstract = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    found = program_costs.traffic(program.lower(*abstract).compile().as_text(), count)
    share = (count - 1) / count
    rows = 5 * 4 * count * 16 * 4
    assert found.gathered == rows and found.sent["all-gather"] == share * rows
    weights, sums = 16 * 16 * 4, 4
    in_loop = 5 * 2 * share * weights
    assert in_loop <= found.sent["all-reduce"] <= in_loop + 5 * 2 * share * sums
    assert program_costs.traffic("ENTRY %main (x: f32[]) -> f32[] {\n}\n", 1).total == 0


def test_memory_counts_what_is_given_back_once():
    """A donated argument whose place the result takes is no further memory."""
    rows = jax.ShapeDtypeStruct((1024, 256), np.float32)
    for donated, outputs in (((0,), 0), ((), 2**20)):
        program = jax.jit(lambda x: x + 1, donate_argnums=donated).lower(rows)
        found = program_costs.memory(program.compile())
        assert found.arguments == 2**20 and found.outputs == outputs
        assert found.total == 2**20 + outputs + found.temporaries


@pytest.mark.parametrize(
    ("message", "size"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 21.53G of "
            "15.75G hbm. Exceeded hbm capacity by 5.78G.",
            21.53 * 2**30,
        ),
        ("RESOURCE_EXHAUSTED: Used 900.0M of 500.0M hbm.", 900 * 2**20),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
            "for HLO temporaries (28.72G) exceeds available HBM (15.75G).",
            int(28.72 * 2**30) + 1000,
        ),
        ("INTERNAL: something else", None),
    ],
)
def test_what_a_refused_program_would_need(message, size):
    found = program_costs.needed(RuntimeError(message), 1000)
    assert found == (None if size is None else int(size))
