# Everything of Finetuner on a CPU: gateway, data sets, training and serving run from this one image. Alone it is
# FinetunerExecutor, which serves the model in FINETUNER_ARTIFACT, or a pretrained one:
#   docker build -t finetuner .
#   docker run -p 51000:51000 -v "$PWD/artifacts:/mnt" -e FINETUNER_ARTIFACT=/mnt/my-run.zip finetuner
# In a Jina Flow: uses='docker://finetuner', uses_with={'artifact': '/mnt/my-run.zip'}, volumes=['./artifacts:/mnt']
# As the whole service: finetuner export compose, or finetuner export kubernetes (docs/operations.md)
FROM python:3.11-slim AS packages
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
WORKDIR /packages
COPY requirements.txt ./
RUN /opt/venv/bin/pip install -r requirements.txt

# apart from the packages: a change of the code makes a small layer
FROM packages AS code
WORKDIR /build
COPY pyproject.toml README.md ./
COPY finetuner ./finetuner
COPY registry ./registry
COPY training ./training
COPY executors ./executors
COPY flows ./flows
RUN /opt/venv/bin/pip install --no-deps --no-build-isolation --target /opt/finetuner .

FROM python:3.11-slim
ENV JINA_OPTOUT_TELEMETRY=1 \
    OMP_WAIT_POLICY=PASSIVE \
    GOMP_SPINCOUNT=10000 \
    PATH=/opt/finetuner/bin:/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPATH=/opt/finetuner \
    FINETUNER_HOME=/home/finetuner/data \
    FINETUNER_CONFIG_DIR=/home/finetuner/data/config \
    XDG_CACHE_HOME=/home/finetuner/data/cache

# a volume begins with the owner that its folder has here
RUN useradd --create-home --uid 1000 finetuner \
    && install --directory --owner=finetuner --group=finetuner --mode=700 /home/finetuner/data /objects
COPY --from=packages /opt/venv /opt/venv
COPY --from=code /opt/finetuner /opt/finetuner
WORKDIR /app
COPY config.yml ./

USER 1000
VOLUME /mnt
EXPOSE 51000 51001

# native gRPC health of the executor; an import of Jina for each check would cost seconds
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-m", "executors.health", "51000"]

# --native: the executor itself is PID 1 and ends cleanly on a SIGTERM. Jina and users may append options; the last counts.
ENTRYPOINT ["jina", "executor", "--native", "--uses", "config.yml", "--port", "51000"]
