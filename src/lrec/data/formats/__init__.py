"""From bytes to rows: files, blocks, tables, times, titles."""
