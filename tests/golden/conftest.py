"""One thread for the reference: its tensors are small, and threads that wait for a busy core cost far more."""

import torch

torch.set_num_threads(1)
