"""The way of log records: numbered, queued, leased in batches, written to an object store once, proven complete.

Read `domain/log_queue.py` (the rules), `queues.py` (memory or Redis), `producer.py` and `spool.py` (how records get
there), `objects.py` (what is written), `shipper.py` (by whom), `sinks.py` (where to), `verify.py` (the proof);
`pipeline.py` is the whole in a gateway, `worker.py` the shipper alone, `buffer.py` the library's.
"""
