"""Simulated experiments: one setting with any system, and the paper's tables and figure as presets."""
