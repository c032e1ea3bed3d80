"""Who does the work of a stage: this process, processes beside it, or a Ray cluster."""
