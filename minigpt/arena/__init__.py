"""The arena without its page: models near and far, what they answer, votes on it, and the board that these make."""
