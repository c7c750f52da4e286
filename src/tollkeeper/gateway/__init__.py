"""The data plane: one file per step of a request's life."""
