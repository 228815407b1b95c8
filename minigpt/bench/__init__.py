"""The comparisons of bench.py: what each way of working brings, measured side by side."""
