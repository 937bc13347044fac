"""The Open Inference Protocol: bytes to requests and back."""
