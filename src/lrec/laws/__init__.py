"""Makes fits, forecasts, intervals and plans from tables of points. Knows nothing about runs, Lightning or torch."""
