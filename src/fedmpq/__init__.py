"""Mixed-precision quantised federated learning: integer training to the same bits on every device."""

__version__ = "0.1.0"
