"""Keys, policies and spend in SQLite or PostgreSQL."""
