# The image of all nodes: Ray, PyTorch and vitline; no compiler, no secrets, not root.
#
#   docker build --build-arg COMMIT=$(git rev-parse HEAD) -t vitline .
#   docker run --rm --gpus all --shm-size 8g -v "$PWD/runs:/vitline/runs" vitline run /opt/vitline/configs/demo.yaml
#
# CUDA's libraries come with PyTorch's wheels, so the base is plain Python and the host needs only the driver.
# Smaller, for machines without GPUs: --build-arg TORCH_INDEX=URL of an index with PyTorch's builds for CPUs.
# Pin the base by its digest where images must be the same next month: --build-arg BASE=python:3.11-slim@sha256:...
ARG BASE=python:3.11-slim-bookworm

# ---------------------------------------------------------------- build: wheels and their dependencies
FROM ${BASE} AS build
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# A few dependencies come as sources.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc g++ python3-dev \
 && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/vitline/venv
WORKDIR /build
COPY constraints.txt pyproject.toml README.md ./
COPY model ./model
COPY pipeline ./pipeline
COPY launch ./launch
# Builds for CPUs are named `2.14.1+cpu`: newer than 2.14.1 for pip, and equal to it for the constraint.
RUN if [ -n "$TORCH_INDEX" ]; then \
      /opt/vitline/venv/bin/pip install -c constraints.txt --extra-index-url "$TORCH_INDEX" torch torchvision; \
    fi \
 && /opt/vitline/venv/bin/pip install -c constraints.txt '.[s3,gcs]'

# ---------------------------------------------------------------- run
FROM ${BASE} AS run
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="vitline" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${COMMIT}"
# wget: KubeRay's probes call it in the pod.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends wget \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 1000 vitline \
 && useradd --uid 1000 --gid 1000 --create-home vitline \
 && install --directory --owner vitline --group vitline /vitline
COPY --from=build /opt/vitline/venv /opt/vitline/venv
COPY configs /opt/vitline/configs
# KubeRay starts Ray through a login shell, which sets PATH anew; these two are found by any.
RUN ln -s /opt/vitline/venv/bin/vitline /opt/vitline/venv/bin/ray /usr/local/bin/
ENV PATH=/opt/vitline/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONSAFEPATH=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    MLFLOW_DISABLE_TELEMETRY=true
USER 1000:1000
WORKDIR /vitline
ENTRYPOINT ["vitline"]
CMD ["--help"]
