"""Bytes to rows: files, blocks, tables, times, titles."""
