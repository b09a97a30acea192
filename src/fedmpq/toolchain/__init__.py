"""Builds the core for other processors on one machine: the edge command, device wheels, bare-metal firmware."""
