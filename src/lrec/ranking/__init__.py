"""Scores to exact ranks and lists."""
