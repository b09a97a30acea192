"""Architectures, the bit-plane codec and the reference of the integer arithmetic."""
