"""Scaling laws: tables of points in; fits, intervals, forecasts, verdicts and plans out. Knows no runs and no torch."""
