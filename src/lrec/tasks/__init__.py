"""The five tasks, a file each, over trained runs."""
