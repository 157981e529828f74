"""Run directories, receipts and what is shown to the user. Light: imports no torch."""
