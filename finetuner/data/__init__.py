"""What models learn from: files, data sets and documents, read row by row in constant memory."""

from finetuner.data.options import CSVOptions, make_options
from finetuner.data.reading import read_csv, read_data

__all__ = ['CSVOptions', 'make_options', 'read_csv', 'read_data']
