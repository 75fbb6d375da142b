"""Programs for those who work on Finetuner."""
