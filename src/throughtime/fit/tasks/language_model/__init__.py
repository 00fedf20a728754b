"""Running text -> how it goes on."""
