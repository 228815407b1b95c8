"""What tuning adds to a frozen model, a method a file."""
