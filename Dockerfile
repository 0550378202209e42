# The package with its configs, as tpu_setup/jobset.sh and a CPU want it. Not built in CI.
#   docker build -t registry/rl_likelihood .                                # a CPU
#   docker build -t registry/rl_likelihood --build-arg EXTRAS=tpu .         # TPUs; more: EXTRAS=tpu,ray
#   docker run --rm -v "$PWD/runs:/app/runs" registry/rl_likelihood \
#     python -m rl_likelihood.train --config=configs/tiny.py --workdir=runs/tiny
FROM python:3.11.14-slim-bookworm

ARG EXTRAS=""
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app

# First what seldom changes: the packages that the pinned versions name.
COPY setup.py constraints.txt pyproject.toml README.md LICENSE ./
COPY rl_likelihood/__init__.py rl_likelihood/
RUN pip install -c constraints.txt -e ".${EXTRAS:+[$EXTRAS]}"
COPY rl_likelihood rl_likelihood
COPY configs configs
COPY experiments experiments
COPY tpu_setup tpu_setup
CMD ["python", "-m", "rl_likelihood.train", "--help"]
