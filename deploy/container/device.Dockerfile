# Checked by a linter only (hadolint).
# A device's agent: text, model and keys; no network at all. Build from the repository's root:
#   docker build -f deploy/container/device.Dockerfile -t confide-device .
# The SuperNode runs in another container (supernode.Dockerfile) and shares the socket's folder alone.
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
COPY requirements.lock ./
RUN python -m venv /app/venv \
    && /app/venv/bin/pip install --no-cache-dir --no-deps torch==2.13.0 \
    && /app/venv/bin/pip install --no-cache-dir --no-deps --require-hashes --requirement requirements.lock
COPY LICENSE README.md pyproject.toml confide.py /app/
COPY privacy /app/privacy
COPY client /app/client

FROM ${BASE}
COPY --from=build /app /app
RUN useradd --system --uid 10002 --home-dir /home/device --shell /usr/sbin/nologin device \
    && install -d -m 0700 -o device -g device /home/device
ENV PATH=/app/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    OMP_WAIT_POLICY=PASSIVE \
    HF_HUB_OFFLINE=1 \
    CONFIDE_HOME=/home/device
USER 10002:10002
WORKDIR /home/device
VOLUME /home/device
HEALTHCHECK --interval=60s --timeout=10s --start-period=180s --retries=3 \
    CMD ["python", "-P", "-m", "client.healthy", "/home/device"]
ENTRYPOINT ["python", "-P", "-m", "client.resident", "--home", "/home/device"]
