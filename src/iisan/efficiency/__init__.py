"""What a method costs: time, trainable parameters and memory, and the one number made of them."""
