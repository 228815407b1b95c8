"""The report's comparisons, repeated small: runs (plan), how they are made (build) and measured, claims, report."""
