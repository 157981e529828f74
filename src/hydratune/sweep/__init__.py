"""Sweeps: jobs composed and checked together, run on this machine, followed and reported from files. Imports no torch."""
