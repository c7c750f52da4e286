"""The composition root: puts real parts behind the ports."""
