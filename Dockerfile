# The worker with its native package: no demo servers, no build tools, not root, nothing written outside /tmp.
FROM python:3.13.9-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# Rust as Debian builds Firefox with it: the package that is called cargo is too old here.
RUN apt-get update && apt-get install -y --no-install-recommends cargo-web gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY constraints-run.txt constraints-wheels.txt ./
# The second environment builds the wheels; it is left behind.
RUN python -m venv /app && /app/bin/pip install --require-hashes -r constraints-run.txt \
    && python -m venv /build && /build/bin/pip install --require-hashes -r constraints-wheels.txt
COPY native ./native
RUN /build/bin/maturin build --release --locked --manifest-path native/Cargo.toml --out dist
COPY pyproject.toml README.md LICENSE ./
COPY worker ./worker
RUN /build/bin/hatchling build -t wheel \
    && /app/bin/pip install --no-deps --no-index dist/*.whl \
    && /app/bin/pip uninstall --yes pip \
    && /app/bin/worker --version | grep 'reader native$'

FROM python:3.13.9-slim-bookworm
COPY --from=build /app /app
ENV PATH=/app/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /tmp
EXPOSE 9108
# For `run`; another command has no page, and wants `--no-healthcheck`.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=6 CMD ["python", "-c", \
    "import os, urllib.request as u; u.urlopen('http://127.0.0.1:%s/livez' % os.environ.get('WORKER_METRICS_PORT', 9108), timeout=3)"]
ENTRYPOINT ["python", "-m", "worker"]
