"""Texts to embeddings with a trained or pretrained model. Importing it loads neither torch nor onnxruntime."""
