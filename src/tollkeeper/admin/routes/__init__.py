"""The routes of the admin API: they translate between HTTP and the services, and decide nothing themselves."""
