"""Types, rules and loading of the configuration. Light: imports no torch."""
