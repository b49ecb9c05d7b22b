"""Networks outside of torch."""
