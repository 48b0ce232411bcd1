"""What a run takes, told before it starts: time, operations, memory."""
