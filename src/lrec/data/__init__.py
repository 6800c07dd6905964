"""Raw interactions in, a memory-mapped store, splits and batches out."""
