"""Processes of ours: their environment, their groups, their ports, their interrupts."""
