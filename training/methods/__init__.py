"""Fine-tuning methods: files that say which model learns from clicks, by which loss, and where its items are."""

from training.methods.item_loading import LoadedItems
from training.methods.loading import files_of, find_methods, load_method, method_folders
from training.methods.method import Method

__all__ = ['LoadedItems', 'Method', 'files_of', 'find_methods', 'load_method', 'method_folders']
