"""What a model is tuned for beyond the next token: preferences and rewards."""
