"""One's own data: folders, files and objects."""
