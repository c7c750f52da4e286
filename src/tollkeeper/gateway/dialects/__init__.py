"""One file per upstream wire format."""
