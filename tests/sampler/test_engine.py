"""The engine gives the plain loop's results, whatever runs at the same time; its programs update caches in place."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_likelihood.learner.optimizer import OptimizerConfig, make_optimizer
from rl_likelihood.learner.rows import StepConfig
from rl_likelihood.learner.step import state_shardings
from rl_likelihood.mesh import make_mesh, replicated
from rl_likelihood.model.architecture import LocalLayers
from rl_likelihood.model.decoding import empty_cache
from rl_likelihood.sampler import decode, engine
from rl_likelihood.sampler.draw import Ends, Request
from rl_likelihood.sampler.stop import stop_table
from tests.sampler.test_decode import EOS, KEY, PAD_ID, PARAMS, VOCAB, prompts
from tests.small import OPTIMIZED, TINY, random_params, tiny

TEMPERATURE = (0.0, 1.0, 0.7, 1.5)
TOKENS = 20
STOP, ENDS = stop_table(VOCAB, ("a",)), np.array([EOS])
P = prompts(7)


def request(p=P, temperature=TEMPERATURE, first_chain=0):
    ends, pad = Ends(STOP, ENDS), np.int32(PAD_ID)
    return Request(p.tokens, p.length, p.uid, KEY, np.float32(temperature), ends, pad, np.int32(first_chain))


def plain(weights, cfg=TINY, p=P):
    return tuple(map(np.asarray, decode.generate(weights, cfg, request(p), TOKENS)))


def by_engine(weights, cfg=TINY, p=P, **how):
    return engine.sample_rows(weights, cfg, request(p), TOKENS, **how)


def same(got, wanted):
    np.testing.assert_array_equal(got[0], wanted[0])
    np.testing.assert_allclose(got[1], wanted[1], atol=2e-5)
    np.testing.assert_array_equal(got[2], wanted[2])


@pytest.fixture(scope="module")
def weights():
    return decode.prepare(PARAMS, TINY)


@pytest.fixture(scope="module")
def wanted(weights):
    out = plain(weights)
    assert out[2].min() <= 2 and out[2].max() > 15, "rows of all ages"
    last = np.take_along_axis(out[0], out[2][..., None] - 1, -1)
    assert (last == EOS).any(), "some end with an end-of-sequence id"
    return out


@pytest.fixture
def short_ring(monkeypatch):
    monkeypatch.setattr(engine, "FIRST_LENGTH", 4)  # so that it grows, and goes round


@pytest.mark.parametrize("slots, streams", [(0, 1), (0, 2), (1, 1), (3, 1), (8, 2), (27, 1), (40, 3)])
def test_the_same_samples_in_the_same_order_whatever_the_slots(weights, wanted, short_ring, slots, streams):
    same(by_engine(weights, slots=slots, streams=streams), wanted)


@pytest.mark.parametrize("slots", [0, 3])
def test_a_limit_ends_rows_early_in_the_same_program(weights, wanted, monkeypatch, slots):
    """Also where the ring, which grows, need not hold all that there is room for."""
    monkeypatch.setattr(engine, "FIRST_LENGTH", 4)
    by_engine(weights, slots=slots)
    compiled = engine.decode_until._cache_size()
    asked = request()
    limited = asked._replace(ends=asked.ends._replace(limit=np.int32(6)))
    ids, logp, length = engine.sample_rows(weights, TINY, limited, TOKENS, slots)
    np.testing.assert_array_equal(length, np.minimum(wanted[2], 6))
    written = np.arange(TOKENS) < length[..., None]
    expected = np.where(written, wanted[0], PAD_ID), np.where(written, wanted[1], 0), length
    same((ids, logp, length), expected)
    same(tuple(map(np.asarray, decode.generate(weights, TINY, limited, TOKENS))), expected)
    assert engine.decode_until._cache_size() == compiled


def test_the_plain_loops_caches_grow_as_they_fill(weights, wanted, monkeypatch):
    monkeypatch.setattr(decode, "FIRST_LENGTH", 3)  # then 6, 12, 20
    jax.clear_caches()
    lengths = cache_lengths_read(jax.make_jaxpr(lambda: decode.generate(weights, TINY, request(), TOKENS))())
    assert lengths == [3, 6, 12, 20]
    same(plain(weights), wanted)
    jax.clear_caches()


def cache_lengths_read(jaxpr):
    """The lengths of the rows' caches in each while loop of a program, in order."""
    loops = [eqn for eqn in jaxpr.eqns[0].params["jaxpr"].jaxpr.eqns if eqn.primitive.name == "while"]
    caches = [[x.aval.shape for x in loop.outvars if x.aval.ndim == 4] for loop in loops]
    return [shapes[0][-1] for shapes in caches]


def test_the_ring_grows_on_an_accelerator_too(weights, wanted, monkeypatch):
    monkeypatch.setattr(engine, "on_cpu", lambda weights: False)
    monkeypatch.setattr(engine, "FIRST_ON_ACCELERATOR", 4)
    lengths, grow = [], engine.grow
    monkeypatch.setattr(engine, "grow", lambda slots, length: lengths.append(length) or grow(slots, length))
    same(by_engine(weights), wanted)
    assert lengths == [8, 16, TOKENS]


def test_a_ring_that_goes_round_many_times(weights, wanted, short_ring):
    p = prompts(7, seed=3)
    same(by_engine(weights, p=p, slots=2, streams=1), plain(weights, p=p))


NETWORKS = {
    "grouped heads, biases, norms": tiny(qkv_bias=True, qk_norm=True, kv_heads=1),
    "windows": tiny(local=LocalLayers((True, False), window=4, theta=20.0), norms="both", scaled_embedding=True),
}


@pytest.mark.parametrize("cfg", NETWORKS.values(), ids=NETWORKS)
def test_other_networks_too(cfg, short_ring):
    weights = decode.prepare(random_params(cfg, 5), cfg)
    same(by_engine(weights, cfg, slots=5), plain(weights, cfg))


@pytest.mark.slow
def test_weights_spread_over_a_mesh(wanted, short_ring):
    mesh = make_mesh((1, 4, 2))
    at = state_shardings(mesh, TINY, make_optimizer(OptimizerConfig()), StepConfig()).params
    spread = decode.prepare(jax.device_put(PARAMS, at), TINY)
    assert len(spread["embed"].devices()) == 8
    same(by_engine(spread, slots=6), wanted)


@pytest.mark.parametrize("slots, numbers", [(6, range(7)), (5, range(2)), (0, range(7)), (0, range(1))])
def test_devices_that_hold_the_weights_whole_have_a_stream_each(weights, wanted, short_ring, slots, numbers):
    """Few prompts are split: some devices have the first rows of a group, some the last ones."""
    mesh = make_mesh((1, 4, 1), jax.devices()[:4])
    spread = jax.device_put(weights, replicated(mesh))
    assert len(engine.copies_of(spread)) == 4 and engine.copies_of(weights) == [weights]
    used, real = [], engine.decode_until

    def recorded(weights, *args):
        used.append(next(iter(weights["embed"].devices())))
        return real(weights, *args)

    few = P.replace(**{k: getattr(P, k)[list(numbers)] for k in ("tokens", "length", "uid")})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "decode_until", recorded)
        same(by_engine(spread, p=few, slots=slots), [x[list(numbers)] for x in wanted])
    assert set(used) == set(mesh.devices.flat)


@pytest.mark.parametrize(
    "p, g, slots, streams, expected",
    [
        (8, 4, 0, 1, (4, 8, 1, 1)),
        (2, 32, 0, 4, (16, 4, 4, 2)),
        (1, 16, 0, 4, (4, 4, 4, 4)),
        (3, 4, 0, 8, (2, 6, 6, 2)),
        (1, 5, 0, 4, (5, 1, 1, 1)),
        (8, 4, 6, 4, (1, 6, 4, 1)),
        (2, 8, 5, 4, (1, 5, 4, 2)),
    ],
)
def test_rows_are_assigned_to_streams_beforehand(p, g, slots, streams, expected):
    assert engine.assign(p, g, slots, streams) == expected


def test_on_a_part_of_a_slice_each_device_runs_its_own_programs():
    class Tpu:
        platform = "tpu"

    cpus = jax.devices()[:4]
    assert not decode.in_streams(cpus, 8, 0, True) and decode.in_streams(cpus, 8, 6, True)
    assert decode.in_streams(cpus[:1], 8, 0, False)
    part = [Tpu()] * 4
    assert decode.in_streams(part, 16, 0, True) and not decode.in_streams(part, 4, 0, True)
    assert not decode.in_streams(part, 16, 0, False), "devices that share weights run one program"


def test_a_longer_ring_replaces_the_old_one():
    slots = engine.empty_slots(TINY, (3, 2), 5, 4, 9)
    old = slots.cache.own
    slots = engine.grow(slots._replace(cache=slots.cache._replace(own=jax.tree.map(lambda x: x + 1, old))), 9)
    assert engine.ring_length(slots) == 9
    for keys, values in slots.cache.own:
        assert (keys[..., :4] == 1).all() and (keys[..., 4:] == 0).all()
        assert (values[..., :4, :] == 1).all() and (values[..., 4:, :] == 0).all()
    engine.grow(slots, 12)
    assert all(x.is_deleted() for x in jax.tree.leaves(slots.cache.own))


def test_the_chains_of_a_group_may_begin_at_any_index(weights, wanted, short_ring):
    got = engine.sample_rows(weights, TINY, request(P, TEMPERATURE[1:3], first_chain=1), TOKENS, slots=3)
    same(got, [x[:, 1:3] for x in wanted])


@pytest.mark.parametrize("shape", [(1, 2, 1), (7, 1, 1), (1, 4, 2)])
def test_one_program_for_all_devices_makes_the_same_rows(weights, wanted, shape):
    """Rows over fsdp, prompts over data; the last mesh has a tensor axis, so its program may have collectives."""
    mesh = make_mesh(shape, jax.devices()[: np.prod(shape)])
    spread = jax.device_put(weights, replicated(mesh))
    out = decode.generate_spread(spread, TINY, request(), TOKENS, mesh)
    same(tuple(map(np.asarray, out)), wanted)
    assert len(out[0].sharding.device_set) == mesh.size


def test_each_prompt_is_prefilled_once_and_its_rows_start_together_or_one_after_the_other(weights, monkeypatch):
    made = []
    real = engine.prefill_jit

    def counted(weights, model, tokens, length, common):
        made.append(len(length))
        return real(weights, model, tokens, length, common)

    monkeypatch.setattr(engine, "prefill_jit", counted)
    by_engine(weights, slots=0, streams=1)
    assert made == [7]
    made.clear()
    by_engine(weights, slots=6, streams=1)
    assert sum(made) == 7 and made[0] == 2


def test_an_error_in_a_stream_is_the_caller_s(weights):
    with pytest.raises(TypeError):
        by_engine(weights, p=P.replace(uid=None), streams=2)


# ------------------------------------------------------------------ the compiled program


def copies(text: str, cache) -> list[str]:
    """Lines of a program that copy something as large as one of the caches."""
    of_cache, lines = {x.size for x in jax.tree.leaves(cache)}, []
    for line in text.splitlines():
        match = re.search(r"= f32\[([\d,]+)\]\S* (copy|transpose|concatenate|pad)\(", line)
        if match and np.prod([int(n) for n in match[1].split(",")]) in of_cache:
            lines.append(line.strip()[:120])
    return lines


@pytest.mark.parametrize("g", [1, 4])
def test_no_step_of_the_plain_loop_copies_a_cache(g):
    cfg, p, n = tiny(layers=2, head_dim=8), 8, 40
    params = jax.eval_shape(lambda p: decode.decoding_layout(p, cfg), random_params(cfg))
    i = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
    asked = Request(i(p, 12), i(p), i(p), KEY, jnp.ones(g), Ends(STOP, ENDS), i(), i())
    traced = decode.generate.trace(params, cfg, asked, n)
    text = traced.lower().compile(compiler_options=OPTIMIZED).as_text()
    loops, program = text.split("ENTRY")
    own = jax.eval_shape(lambda: empty_cache(cfg, p * g, n))
    assert " dynamic-update-slice" in loops and not copies(loops, own)
    assert len(copies(program, own)) <= 2 * cfg.layers, "of the empty ones, before the loop"


@pytest.mark.parametrize("g", [1, 4])
def test_no_step_copies_a_cache(g):
    cfg = tiny(layers=2, head_dim=8)
    slots = jax.eval_shape(lambda: engine.empty_slots(cfg, (8, g), 12, 40, 40))
    params = jax.eval_shape(lambda p: decode.decoding_layout(p, cfg), random_params(cfg))
    traced = engine.decode_until.trace(params, cfg, slots, Ends(STOP, ENDS), jnp.int32(1), jnp.int32(1))
    compiled = traced.lower().compile(compiler_options=OPTIMIZED)
    assert not copies(compiled.as_text(), slots.cache)
    memory = compiled.memory_analysis()
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(slots.cache))
    assert memory.alias_size_in_bytes >= held, "all caches are donated"
    assert memory.temp_size_in_bytes < held, "and no second one is made"
