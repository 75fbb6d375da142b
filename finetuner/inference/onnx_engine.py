"""Inference with onnxruntime."""

from __future__ import annotations

MODEL_FILE = 'model.onnx'
OUTPUT_NAME = 'sentence_embedding'
