"""Measured comparisons: `python -m tests.benchmarks [NAME]`, one JSON line each.

CPU time per unit on one thread, ours and the peer interleaved in one process, so that a busy machine slows both. Quote the
ratios: rates depend on the machine.
"""
