# promote, announce, and an MLflow server: no PyTorch.
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS installer
ARG PIP_INDEX_URL
ARG UV_DEFAULT_INDEX
COPY requirements/uv.txt /requirements/
RUN python -m pip install --quiet --no-cache-dir --disable-pip-version-check --root-user-action=ignore \
      --require-hashes -r /requirements/uv.txt \
 && uv venv --quiet --no-cache --python "$(command -v python)" /opt/rankone

FROM installer AS environment
ARG UV_DEFAULT_INDEX
COPY requirements/registry.txt /requirements/
RUN uv pip install --quiet --no-cache --compile-bytecode --require-hashes --python /opt/rankone \
      -r /requirements/registry.txt

FROM ${BASE_IMAGE} AS code
COPY components /app/components
COPY retrieval /app/retrieval
RUN python -m compileall -q --invalidation-mode unchecked-hash /app

FROM ${BASE_IMAGE}
RUN rm -rf /usr/bin/pip* /usr/local/bin/pip* /usr/share/python-wheels \
      /usr/lib/python3/dist-packages/pip* /usr/lib/python3*/ensurepip \
      /usr/local/lib/python3*/site-packages/pip* /usr/local/lib/python3*/ensurepip
ENV PATH=/opt/rankone/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp USER=rankone RANKONE_HOME=/tmp/rankone GOMP_SPINCOUNT=10000 MLFLOW_DISABLE_TELEMETRY=true
COPY --from=environment /opt/rankone /opt/rankone
COPY --from=code /app /app
WORKDIR /app
USER 65532:65532
ARG SOURCE=""
ARG REVISION=""
ARG VERSION=""
ENV RANKONE_CODE_VERSION=${VERSION}
LABEL org.opencontainers.image.source=${SOURCE} \
      org.opencontainers.image.revision=${REVISION} \
      org.opencontainers.image.version=${VERSION}
