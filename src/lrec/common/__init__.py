"""Knows nothing of recommenders: files that are whole or absent, pictures, text tables, signals, hardware, threads."""
