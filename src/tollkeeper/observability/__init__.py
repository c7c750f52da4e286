"""Metrics declared once, and logging."""
