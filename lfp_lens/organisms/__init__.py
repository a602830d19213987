"""Planted pairs with sealed answer keys and a blind scorecard."""
