"""One file per configuration group: configuration -> library object."""
