"""The composition root: puts real parts behind the ports, and runs them as one process."""
