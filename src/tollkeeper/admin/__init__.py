"""The control plane: the REST API for operators."""
