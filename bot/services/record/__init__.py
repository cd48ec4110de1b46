"""The sealed record: the sealer, what it signs, the witnesses that keep it, and what workers ask of them."""
