"""Rounds, exact aggregation, the bit-width policy, the journal and the broker."""
