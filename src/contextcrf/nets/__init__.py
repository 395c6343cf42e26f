"""Networks that compute feature maps (Network Part-1 of the paper) and their ImageNet weights."""
