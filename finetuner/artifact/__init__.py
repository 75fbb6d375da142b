"""The artifact: what a training run leaves behind, one zip that other tools can open too.

<run name>/
    config.yml      the configuration of the run
    metadata.yml    format version, the models inside, size and sha256 of every other file
    metrics.yml     retrieval metrics before and after
    models/<name>/  what the library of its backbone opens, and model.onnx beside the weights
    models/clip/    the weights of both models clip-text and clip-vision, as their library opens them
"""

from __future__ import annotations

from finetuner.artifact.manifest import FORMAT_VERSION, ModelInfo
from finetuner.artifact.opening import Artifact, open_artifact
from finetuner.artifact.packing import pack
from finetuner.excepts import ArtifactError

__all__ = ['FORMAT_VERSION', 'Artifact', 'ArtifactError', 'ModelInfo', 'open_artifact', 'pack']
