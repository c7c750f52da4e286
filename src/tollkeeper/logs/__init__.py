"""The way of log records: numbered, buffered, leased in batches, written to an object store once, proven complete.

Read `buffer.py` (what is kept), `objects.py` (what is written), `shipper.py` (when, and what happens on failure),
`pipeline.py` (the whole), `sinks.py` (where to), `verify.py` (the proof).
"""
