"""Settings for tests of tiny models."""

import torch

# Waiting for a second thread takes longer than the work.
torch.set_num_threads(1)
