"""The splash kernel, interpreted on CPU, against the dense attention: values and gradients, prompt and branches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_likelihood.mesh import make_mesh
from rl_likelihood.model import splash
from rl_likelihood.model.attention import attention, branch_mask, references
from rl_likelihood.shapes import CHAIN, ENV, PAD, REFERENCE, SAMPLED, TAG

P, G, S, T, H, K, D = 2, 2, 5, 9, 4, 2, 64
LENGTHS = np.array([5, 3])
CHAINS = [[CHAIN] * 5 + [TAG] + [REFERENCE] * 3, [CHAIN] * 2 + [REFERENCE] * 4 + [PAD] * 3]
BRANCHES = [[CHAIN] * 3 + [SAMPLED] * 2 + [REFERENCE] * 4, [CHAIN] * 2 + [SAMPLED] * 4 + [REFERENCE] * 2 + [PAD]]
TURNS = [
    [REFERENCE] + [CHAIN] * 2 + [ENV] + [REFERENCE] * 2 + [CHAIN] * 2 + [PAD],
    [REFERENCE] * 2 + [CHAIN, ENV, REFERENCE, CHAIN, ENV] + [REFERENCE] * 2,
]
OTHERS = [
    [CHAIN] * 2 + [SAMPLED] + [REFERENCE] * 2 + [PAD] + [REFERENCE] * 3,
    [CHAIN] + [REFERENCE, PAD, REFERENCE, PAD, PAD, REFERENCE, REFERENCE, PAD],
]


def arrays():
    rng = np.random.default_rng(0)
    shapes = ((P, G, T, H, D), (P, G, K, T, D), (P, G, K, T, D), (P, K, S, D), (P, K, S, D))
    return [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]


def both(segment):
    """The two ways, as functions of the arrays; queries of padding mean nothing and are left out."""
    one_answer, segment = segment is CHAINS, jnp.asarray([segment, segment[::-1]])
    branches = None if one_answer else of(segment)
    in_prompt = jnp.arange(S) < LENGTHS[:, None]
    real = (segment != PAD)[..., None, None]
    own_mask = branch_mask(segment)
    one = lambda q, k, v, pk, pv: real * attention(q, (k, v), own_mask, (pk, pv, in_prompt))
    two = lambda q, k, v, pk, pv: real * splash.attention(q, (k, v), (pk, pv, in_prompt), branches, interpret=True)
    return one, two


def of(segment):
    """The branches of these rows, with their true lengths."""
    number = references(segment)
    longest = max(int((number == n).sum(-1).max()) for n in range(1, 4))
    return splash.Branches(segment, number, int(number.max()) + 1, longest)  # one more than there are


SOME = [[CHAIN] * 5 + [PAD] * 4, TURNS[1]]
ROWS = {"chain": CHAINS, "branches": BRANCHES, "conversation": TURNS, "several references": OTHERS, "some": SOME}


@pytest.mark.parametrize("segment", ROWS.values(), ids=ROWS)
def test_the_kernel_is_the_dense_attention_with_its_gradients(segment):
    one, two = both(segment)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(P, G, T, H, D)), jnp.float32)
    x = arrays()
    np.testing.assert_allclose(one(*x), two(*x), atol=2e-5)
    grads = [jax.grad(lambda *x, f=f: (f(*x) * weights).sum(), argnums=range(5))(*x) for f in (one, two)]
    for a, b in zip(*grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_many_keys_are_padded_to_whole_tiles(monkeypatch):
    """640 keys are 5 tiles of 128; padded, they are 2 of 512."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 1, n, T, D)), jnp.float32) for n in (H, K, K))
    q = q.swapaxes(2, 3)
    pk, pv = (jnp.asarray(rng.normal(size=(1, K, 400, D)), jnp.float32) for _ in range(2))
    in_prompt = jnp.arange(400)[None] < 390
    segment = jnp.asarray([[TURNS[1]]])
    tiles = []
    tile = splash._tile
    monkeypatch.setattr(splash, "MANY", 0)
    monkeypatch.setattr(splash, "_tile", lambda n: tiles.append((n, tile(n))) or tile(n))
    one = attention(q, (k, v), branch_mask(segment), (pk, pv, in_prompt))
    two = splash.attention(q, (k, v), (pk, pv, in_prompt), of(segment), interpret=True)
    np.testing.assert_allclose(one, two, atol=2e-5)
    assert tiles[0] == (640, 128) and (1024, 512) in tiles


def test_a_prompt_has_nothing_before_it():
    q, k, v, *_ = arrays()
    lengths = np.array([T, 4])
    real = (jnp.arange(T) < lengths[:, None])[:, None]
    causal = jnp.tril(jnp.ones((T, T), bool)) & real[..., None, :]
    one = lambda q, k, v: real[..., None, None] * attention(q, (k, v), causal)
    two = lambda q, k, v: real[..., None, None] * splash.attention(q, (k, v), interpret=True)
    x = q[:, :1], k[:, :1], v[:, :1]
    np.testing.assert_allclose(one(*x), two(*x), atol=2e-5)
    grads = [jax.grad(lambda *x, f=f: (f(*x) ** 2).sum(), argnums=range(3))(*x) for f in (one, two)]
    for a, b in zip(*grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    with jax.set_mesh(make_mesh((2, 2, 2))):
        np.testing.assert_allclose(one(*x), jax.jit(two)(*x), atol=2e-5)


def test_a_prompt_that_too_few_share_is_split_by_tokens():
    """Three tokens on each of three devices: values and gradients as on one."""
    q, k, v, *_ = arrays()
    x = q[:, :1], k[:, :1], v[:, :1]
    run = lambda *x: splash.attention(x[0], x[1:], interpret=True)
    both = jax.value_and_grad(lambda *x: (run(*x) ** 2).sum(), argnums=range(3))
    value, grads = both(*x)
    with jax.set_mesh(make_mesh((2, 3, 1), jax.devices()[:6])):
        got, got_grads = jax.jit(both)(*x)
        text = jax.jit(run).lower(*x).as_text()
    assert f"tensor<{P // 2}x1x{T // 3}x{H}x{D}xf32>" in text, "each device has a part of the queries"
    np.testing.assert_allclose(got, value, rtol=1e-5)
    for a, b in zip(got_grads, grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_rows_are_split_by_tokens_over_context():
    """Each of two devices has one tile of queries and all keys. Values and gradients equal those on one device."""
    rng, t = np.random.default_rng(3), 2 * splash.LANES
    shapes = ((1, 1, t, 2, D), (1, 1, 1, t, D), (1, 1, 1, t, D), (1, 1, S, D), (1, 1, S, D))
    x = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    rows = [CHAIN] * 110 + [ENV] * 10 + [REFERENCE] * 60 + [CHAIN] * 10 + [REFERENCE] * 30 + [PAD] * 36
    segment = jnp.asarray([[rows]])  # the first reference is on both devices
    real, in_prompt = (segment != PAD)[..., None, None], jnp.arange(S) < np.array([[3]])
    branches = of(segment)

    def run(q, k, v, pk, pv):
        return real * splash.attention(q, (k, v), (pk, pv, in_prompt), branches, interpret=True)

    both = jax.value_and_grad(lambda *x: (run(*x) ** 2).sum(), argnums=range(5))
    value, grads = jax.jit(both)(*x)
    with jax.set_mesh(make_mesh((1, 1, 2, 1), jax.devices()[:2])):
        lowered = jax.jit(both).lower(*x)
        got, got_grads = lowered.compile()(*x)
    assert f"tensor<1x1x{splash.LANES}x2x{D}xf32>" in lowered.as_text(), "each device has a part of the queries"
    np.testing.assert_allclose(got, value, rtol=1e-5)
    for a, b in zip(got_grads, grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_on_a_mesh_every_device_runs_it_on_its_part():
    one, two = both(BRANCHES)
    # A single answer may have a pass of its own or not.
    q, k, v, pk, pv = arrays()
    segment, in_prompt = jnp.asarray([CHAINS, CHAINS]), jnp.arange(S) < LENGTHS[:, None]
    real = (segment != PAD)[..., None, None]
    passes = [real * splash.attention(q, (k, v), (pk, pv, in_prompt), b, interpret=True) for b in (None, of(segment))]
    np.testing.assert_allclose(*passes, atol=2e-5)
    with jax.set_mesh(make_mesh((2, 2, 2))):  # prompts over data, rows over fsdp, heads over tensor
        np.testing.assert_allclose(one(*arrays()), jax.jit(two)(*arrays()), atol=2e-5)


def test_heads_of_odd_width_are_refused_with_the_reason():
    assert splash.refused(128) == splash.refused(64) == "" and "80 wide" in splash.refused(80)
