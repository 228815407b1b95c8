"""The report's comparisons, repeated small: what is compared (arms), how it is made and measured, what it shows."""
