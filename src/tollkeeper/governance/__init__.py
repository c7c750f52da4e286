"""Admission and settlement, on memory and on Redis; the ledger with its outbox; the sync worker."""
