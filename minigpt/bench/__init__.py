"""The benchmarks of bench.py: this project beside others, measured in turns on the same machine."""
