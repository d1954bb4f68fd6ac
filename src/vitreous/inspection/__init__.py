"""Looking inside: the report of a run, and where a model attends."""
