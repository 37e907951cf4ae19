# Checked by a linter only (hadolint).
# The server of a federation, for `confide server start /fed`. Build from the repository's root:
#   docker build -f deploy/container/server.Dockerfile -t confide-server .
# BASE should be pinned by its digest where images are built for others.
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
COPY requirements.lock deploy/container/subset.py deploy/container/server.txt ./
RUN python subset.py requirements.lock server.txt > server.lock \
    && python -m venv /app/venv \
    && /app/venv/bin/pip install --no-cache-dir --no-deps --require-hashes --requirement server.lock
COPY LICENSE README.md pyproject.toml confide.py /app/
COPY privacy /app/privacy
COPY server /app/server
COPY client/__init__.py client/app.py /app/client/
RUN python -m compileall -q /app/privacy /app/server /app/client /app/confide.py

FROM ${BASE}
COPY --from=build /app /app
RUN useradd --system --uid 10001 --home-dir /fed --shell /usr/sbin/nologin confide \
    && install -d -m 0700 -o confide -g confide /fed
ENV PATH=/app/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    FLWR_TELEMETRY_ENABLED=0
USER 10001:10001
WORKDIR /fed
VOLUME /fed
EXPOSE 9092
HEALTHCHECK --interval=30s --timeout=10s --start-period=90s --retries=3 \
    CMD ["python", "-P", "/app/server/healthy.py", "/fed"]
ENTRYPOINT ["python", "-P", "-m", "confide", "server"]
CMD ["start", "/fed"]
