"""The distilled set: what it holds, how it starts, how it is read and written."""
