"""hydratune beside plain scripts on the same libraries: `make bench`."""
