"""The load generator behind `tidegate bench`: when requests are due, who sends them, and what is made of the answers."""
