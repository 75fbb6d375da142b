# FinetunerExecutor on a CPU. It serves the model in FINETUNER_ARTIFACT, or a pretrained one:
#   docker build -t finetuner .
#   docker run -p 51000:51000 -v "$PWD/artifacts:/mnt" -e FINETUNER_ARTIFACT=/mnt/my-run.zip finetuner
# In a Jina Flow: uses='docker://finetuner', uses_with={'artifact': '/mnt/my-run.zip'}, volumes=['./artifacts:/mnt']
FROM python:3.11-slim

ENV JINA_OPTOUT_TELEMETRY=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPATH=/app \
    FINETUNER_HOME=/home/finetuner/data

WORKDIR /app

COPY requirements.txt ./
RUN pip install -r requirements.txt \
    && useradd --create-home --uid 1000 finetuner

COPY config.yml ./
COPY finetuner ./finetuner
COPY registry ./registry
COPY executors ./executors

USER 1000
VOLUME /mnt
EXPOSE 51000

# native gRPC health of the executor; an import of Jina for each check would cost seconds
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-m", "executors.health", "51000"]

# --native: the executor itself is PID 1 and ends cleanly on a SIGTERM. Jina and users may append options; the last counts.
ENTRYPOINT ["jina", "executor", "--native", "--uses", "config.yml", "--port", "51000"]
