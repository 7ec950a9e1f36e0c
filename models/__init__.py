"""Models that the project makes itself, and the programs that make them."""
