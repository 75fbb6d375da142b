"""What models learn from: files, data sets and documents, read row by row in constant memory."""

from finetuner.data.csv_file import CSVOptions, read_csv

__all__ = ['CSVOptions', 'read_csv']
