# One image for everything: `minion orchestrator`, `minion worker CAPABILITY`, `minion flower`, `minion migrate`.
# BuildKit is not needed. Another base must have Python 3.11 or later with venv and pip:
#   docker build --build-arg BASE=registry.example/python:3.12 -t minions .
# For another package index, set PIP_INDEX_URL. If pip must trust other certificates, for example those of a proxy, set
# PIP_CERT to their file in the base. The final image contains neither value:
#   docker build --build-arg PIP_INDEX_URL=https://packages.example.com/simple --build-arg PIP_CERT=/etc/ssl/… -t minions .
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
ARG PIP_INDEX_URL
ARG PIP_CERT
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1
WORKDIR /src

# Dependencies first: this layer is rebuilt only when the lock changes.
COPY requirements.lock ./
RUN python3 -m venv /opt/minions \
    && /opt/minions/bin/pip install --require-hashes -r requirements.lock

# The build tools of the wheel are locked too, and stay out of the final image.
COPY requirements-dev.lock ./
RUN awk '/^(hatchling|packaging|pathspec|pluggy|trove-classifiers)==/ {on = 1} on {print} !/\\$/ {on = 0}' \
        requirements-dev.lock > build.lock \
    && python3 -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes --no-deps -r build.lock

COPY pyproject.toml README.md LICENSE ./
COPY migrations migrations
COPY minions minions
COPY orchestrator orchestrator
COPY shared shared
COPY workers workers
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels ./minions . \
    && /opt/minions/bin/pip install --no-deps /wheels/*.whl

FROM ${BASE}
LABEL org.opencontainers.image.title="minions" \
      org.opencontainers.image.description="Task queue and workers for AI agents, on Celery, Redis and PostgreSQL" \
      org.opencontainers.image.licenses="MIT"
# The official images have no bytecode of the standard library: without it each process starts 0.4 s later. (Files that
# no process can import do not compile.)
RUN python3 -m compileall -q "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" || true
RUN groupadd --gid 10001 minion \
    && useradd --uid 10001 --gid minion --no-create-home --home-dir /var/lib/minions --shell /usr/sbin/nologin minion \
    && install -d -o minion -g minion -m 0750 /var/lib/minions
COPY --from=build /opt/minions /opt/minions
ENV PATH=/opt/minions/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MINION_DATA_DIR=/var/lib/minions \
    MINION_API_HOST=0.0.0.0 \
    MINION_LOG_FORMAT=json
WORKDIR /var/lib/minions
USER 10001:10001
VOLUME /var/lib/minions
EXPOSE 8700
# For an orchestrator. Workers and Flower have separate checks: see docker-compose.yml.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8700/readyz', timeout=4)"]
ENTRYPOINT ["minion"]
CMD ["--help"]
