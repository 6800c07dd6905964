"""A log to batches: the DataModule, histories to recommend for, and the rooms below."""
