"""Tables of points to fits, forecasts, intervals and plans. Knows nothing of runs, studies, Lightning or torch."""
