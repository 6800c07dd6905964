"""Helpers that know nothing of recommenders: whole files, pictures, pages, text tables, signals, hardware, threads."""
