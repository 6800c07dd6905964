"""A checkpoint on disk: its format, writing and reading."""
