"""Pure rules of money, limits and settlement. No await, clock, environment or IO in this package."""
