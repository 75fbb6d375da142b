"""What must outlive a process: accounts, tokens, data sets, experiments, runs and artifacts, in SQL and an object store."""
