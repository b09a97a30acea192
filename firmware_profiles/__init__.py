"""Descriptions of device classes, one TOML file each, and the boards that firmware is linked for."""

from fedmpq.firmware_profiles.profiles import load, names
from fedmpq.firmware_profiles.schema import Profile

__all__ = ["Profile", "load", "names"]
