"""Keys, policies and spend in SQLite or PostgreSQL. `database.Database` is the whole room behind one door."""
