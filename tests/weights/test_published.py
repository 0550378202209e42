"""What the published models' shapes are, by name."""

import math

import jax
import pytest

from rl_likelihood.errors import UserError
from rl_likelihood.model.architecture import is_spec, param_specs
from rl_likelihood.weights.published import PUBLISHED, published

# Parameters in thousands, as the publishers' cards and files have them.
COUNTS = {
    "llama-3.2-1b": 1_235_814,
    "llama-3.2-3b": 3_212_750,
    "llama-3.1-8b": 8_030_261,
    "qwen2.5-0.5b": 494_033,
    "qwen2.5-1.5b": 1_543_714,
    "qwen2.5-3b": 3_085_939,
    "qwen2.5-7b": 7_615_617,
    "qwen2.5-14b": 14_770_034,
    "qwen3-0.6b": 596_050,
    "qwen3-1.7b": 1_720_575,
    "qwen3-4b": 4_022_468,
    "qwen3-8b": 8_190_735,
    "qwen3-14b": 14_768_307,
    "qwen3-32b": 32_762_123,
    "qwen3-30b-a3b": 30_532_123,
    "gemma-3-270m": 268_098,
    "gemma-3-1b": 999_886,
    "mistral-7b-v0.3": 7_248_024,
    "olmo-2-0425-1b": 1_484_917,
    "olmo-2-1124-7b": 7_298_617,
    "phi-4": 14_659_507,
    "smollm2-135m": 134_515,
    "smollm2-360m": 361_821,
    "smollm2-1.7b": 1_711_376,
    "smollm3-3b": 3_075_099,
}


def test_published_shapes_have_the_published_numbers_of_parameters():
    def count(name):
        specs = jax.tree.leaves(param_specs(published(name)), is_leaf=is_spec)
        return sum(math.prod(spec.shape) for spec in specs)

    assert {name: round(count(name) / 1000) for name in PUBLISHED} == COUNTS


def test_only_gemma_has_a_window():
    windows = {name: published(name).local.window for name in PUBLISHED if published(name).local}
    assert windows == {"gemma-3-270m": 512, "gemma-3-1b": 512, "smollm3-3b": 0}, "phi-4 and Mistral v0.3 have none"


def test_names_may_have_a_publisher_and_instruct():
    assert published("HuggingFaceTB/SmolLM2-135M-Instruct") == published("smollm2-135m")
    assert published("mistralai/Mistral-7B-Instruct-v0.3") == published("mistral-7b-v0.3")
    with pytest.raises(UserError, match=r"model 'org/Qwen2.5-4B-Instruct'.*nearest is qwen2.5-(3b|14b)"):
        published("org/Qwen2.5-4B-Instruct")
