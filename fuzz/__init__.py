"""Fuzzers; not part of the package."""
