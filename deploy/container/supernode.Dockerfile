# Checked by a linter only (hadolint).
# A device's SuperNode with our launcher first on its PATH: it sees the relay's socket, no text, no key of the agent.
#   docker build -f deploy/container/supernode.Dockerfile -t confide-supernode .
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
COPY requirements.lock deploy/container/subset.py deploy/container/server.txt ./
RUN python subset.py requirements.lock server.txt > server.lock \
    && python -m venv /app/venv \
    && /app/venv/bin/pip install --no-cache-dir --no-deps --require-hashes --requirement server.lock
COPY client/__init__.py client/app.py client/launcher.py client/launcher_flower.py /app/client/
COPY privacy /app/privacy
COPY --chmod=0755 deploy/launcher/flwr-clientapp /app/launcher/flwr-clientapp

FROM ${BASE}
COPY --from=build /app /app
RUN useradd --system --uid 10003 --home-dir /run/node --shell /usr/sbin/nologin node
ENV PATH=/app/launcher:/app/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    CONFIDE_PYTHON=/app/venv/bin/python \
    CONFIDE_HOME=/pinned \
    FLWR_HOME=/scratch \
    FLWR_TELEMETRY_ENABLED=0 \
    FLWR_DISABLE_UPDATE_CHECK=1
USER 10003:10003
WORKDIR /tmp
HEALTHCHECK --interval=60s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import socket; socket.create_connection(('127.0.0.1', 9094), 5)"]
ENTRYPOINT ["flower-supernode", "--root-certificates", "/pinned/authority.crt", \
    "--auth-supernode-private-key", "/pinned/supernode", "--host", "127.0.0.1", "--port", "9094"]
CMD ["--superlink", "fed.example.org:9092"]
