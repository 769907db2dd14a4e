# placerank on an NVIDIA GPU: docker build -f docker/cuda.Dockerfile -t placerank:cuda .
# Not built yet: where it was written there was no Docker.
# CUDA's libraries come with torch's wheels; the driver is the host's (docker run --gpus all, NVIDIA Container Toolkit).
FROM python:3.11-slim-bookworm
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Triton compiles its launchers with a C compiler when a kernel is first called.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libgomp1 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements/ requirements/
RUN pip install --no-deps -r requirements/gpu.txt
COPY . .
RUN pip install --no-deps --no-build-isolation .
WORKDIR /work
ENTRYPOINT ["placerank"]
CMD ["--help"]
