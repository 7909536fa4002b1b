# A service in a container: your handlers in /srv, the environment that was built from the wheel beside them.
#
#   docker build --tag my-model .
#   docker run --rm --publish 8000:8000 --env TIDEGATE_API_KEY=sesame --volume "$PWD/app.py:/srv/app.py:ro" my-model
#
# For your own image put what your handlers need into requirements.txt, and the handlers where this copies them.
# With a GPU: this same image, since CUDA's libraries come with torch's wheel and the driver with the container's runtime:
# build with --build-arg EXTRAS=gpu, put torch into requirements.txt, run with --gpus all.

FROM python:3.13-slim AS build
ARG EXTRAS=""
WORKDIR /build
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
# What changes least comes first: your own requirements, then tidegate.
COPY deploy/requirements.txt ./requirements.txt
RUN pip install --requirement requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY batching batching
COPY sdk sdk
COPY transports transports
# hadolint ignore=DL3013
RUN pip install ".${EXTRAS:+[$EXTRAS]}"

FROM python:3.13-slim
RUN useradd --uid 10001 --no-create-home --home-dir /srv tidegate
COPY --from=build /opt/venv /opt/venv
WORKDIR /srv
COPY deploy/app.py app.py
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PORT=8000 \
    TIDEGATE_LOG_FORMAT=json
USER 10001:10001
EXPOSE 8000
# Long enough for a setup that loads weights; an orchestrator's own probes replace this.
HEALTHCHECK --interval=5s --timeout=3s --start-period=300s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ['PORT']}/readyz\", timeout=2)"]
STOPSIGNAL SIGTERM
# In the exec form, so that signals reach it: SIGTERM drains.
ENTRYPOINT ["tidegate", "serve"]
CMD ["app.py"]
