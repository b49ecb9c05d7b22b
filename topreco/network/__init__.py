"""Networks that reconstruct top quarks: tokens, spurions, backbones, heads and their training."""
