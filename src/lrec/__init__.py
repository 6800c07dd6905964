"""Large sequential recommenders with scaling laws."""
