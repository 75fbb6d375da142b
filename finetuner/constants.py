"""Names that older code imports: states, tags, prefixes."""

from __future__ import annotations

CREATED, STARTED, FINISHED, FAILED = 'CREATED', 'STARTED', 'FINISHED', 'FAILED'
CANCELLED = 'CANCELLED'
ENDED = (FINISHED, FAILED, CANCELLED)
"""The states that a run does not leave by itself."""

API_VERSION = 'api/v1'
ARTIFACTS_DIR = 'artifacts/'
DA_PREFIX = 'finetuner-dastorage'
"""How the names of uploaded data sets begin."""
DEFAULT_TAG_KEY = 'finetuner_label'
DEFAULT_TAG_SCORE_KEY = 'finetuner_score'
EVALUATE = 'evaluate'
HF_ORG_PREFIX = 'jinaai/'
HF_URL_PREFIX = f'https://huggingface.co/{HF_ORG_PREFIX}'
MAX_NUM_DOCS = 'max_num_docs'
MODELS = 'models'
SYNTHESIS_TASK = 'generation'
TRAINING_TASK = 'training'
TUNING_TASK = 'tuning_task'  # in the config of a run: the id of the fine-tuning task that it carries
