# detect_changes, co_cluster and evaluate: PyTorch with CUDA, FAISS and what draws the report.
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS installer
ARG PIP_INDEX_URL
ARG UV_DEFAULT_INDEX
COPY requirements/uv.txt /requirements/
RUN python -m pip install --quiet --no-cache-dir --disable-pip-version-check --root-user-action=ignore \
      --require-hashes -r /requirements/uv.txt \
 && uv venv --quiet --no-cache --python "$(command -v python)" /opt/rankone

# The same lines as in training.Dockerfile, so that both images share this layer: PyTorch and CUDA's libraries.
FROM installer AS torch
ARG UV_DEFAULT_INDEX
COPY requirements/torch.txt /requirements/
RUN uv pip install --quiet --no-cache --compile-bytecode --require-hashes --python /opt/rankone \
      -r /requirements/torch.txt \
 && find /opt/rankone -name '*.a' -delete

FROM torch AS environment
ARG UV_DEFAULT_INDEX
COPY requirements/evaluation.txt /requirements/
RUN touch /before \
 && uv pip install --quiet --no-cache --compile-bytecode --require-hashes --python /opt/rankone \
      -r /requirements/evaluation.txt \
 && mkdir /added \
 && find /opt/rankone -cnewer /before '(' -type f -o -type l ')' -exec cp --parents --no-dereference --preserve=all -t /added '{}' +

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
COPY --from=torch /opt/rankone /opt/rankone
COPY --from=environment /added /
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
