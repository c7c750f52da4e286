"""Real servers for tests: started on private sockets or ports, stopped by pid."""
