"""Messages between ranks: in memory, over torch.distributed, through a shared folder."""
