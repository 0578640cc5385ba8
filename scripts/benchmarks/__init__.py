"""Benchmarks: each number beside a limit that is measured in the same run, because machines are shared and noisy."""
