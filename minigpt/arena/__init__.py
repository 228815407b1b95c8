"""The arena without its page: local and remote models, their answers, votes, and the leaderboard made from them."""
