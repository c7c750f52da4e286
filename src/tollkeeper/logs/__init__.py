"""Request records: numbered, leased, shipped to an object store."""
