"""Runs with files: from a recipe to a scored set that survives being killed at any moment."""
