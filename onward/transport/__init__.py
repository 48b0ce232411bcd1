"""Messages between ranks: over torch.distributed, or through a shared folder."""
