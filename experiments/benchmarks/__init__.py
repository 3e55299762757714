"""Side by side with what people use instead, and what a sweep survives."""
