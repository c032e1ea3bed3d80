"""Who does the work of a stage."""
