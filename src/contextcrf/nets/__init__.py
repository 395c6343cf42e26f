"""Networks that compute feature maps (the paper's "Network Part-1"), and their ImageNet weights."""
