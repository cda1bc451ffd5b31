"""Models to messages and back: pure, one module per noun."""
