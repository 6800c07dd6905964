"""From rows to a store: order, duplicates, k-core, statistics, and the store itself."""
