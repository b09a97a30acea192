"""Descriptions of device classes, one TOML file each."""
