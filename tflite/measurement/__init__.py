"""Latency and memory: on this machine, on Android phones, on Linux boards."""
