"""What the evaluation scripts share: whom they ask, what they look at first, how they show what they found."""
