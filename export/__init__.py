"""From a PyTorch module to a program, weights and the artifacts built of them."""
