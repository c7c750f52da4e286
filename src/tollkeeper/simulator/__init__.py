"""A simulated provider that tells exactly what it served."""
