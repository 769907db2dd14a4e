# placerank on a CPU: docker build -f docker/cpu.Dockerfile -t placerank:cpu .
# Not built yet: where it was written there was no Docker. Its RUN lines were run in an empty virtual environment.
FROM python:3.11-slim-bookworm
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# numba shares work between threads with OpenMP.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# The lock alone first: a change of the code does not install everything again. Triton is for tests.
COPY requirements/ requirements/
RUN grep -v '^triton==' requirements/cpu.txt > requirements/image.txt \
    && pip install --no-deps --extra-index-url https://download.pytorch.org/whl/cpu -r requirements/image.txt
COPY . .
RUN pip install --no-deps --no-build-isolation . && placerank doctor
WORKDIR /work
ENTRYPOINT ["placerank"]
CMD ["--help"]
