"""One file per verb: run(config, run) -> metrics."""
