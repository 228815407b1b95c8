"""What tuning adds to a frozen GPT: low-rank updates, bottlenecks, virtual tokens; and their files."""
