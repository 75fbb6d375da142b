"""Texts to embeddings with a trained or pretrained model. Importing it loads neither torch nor onnxruntime."""

from __future__ import annotations

from finetuner.inference.engine import InferenceEngine
from finetuner.inference.loading import load_engine
from finetuner.inference.model import build_model, encode, get_model
from finetuner.inference.remote import resolve_artifact

__all__ = ['InferenceEngine', 'build_model', 'encode', 'get_model', 'load_engine', 'resolve_artifact']
