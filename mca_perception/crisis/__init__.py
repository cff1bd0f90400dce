"""Crisis content: is a post informative, what is it about, how urgent is it."""
