"""Scaling laws: points in, fits with intervals, held-out predictions and studies out."""
