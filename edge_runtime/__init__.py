"""What runs on a device: the integer core, the session and the agent. Never imports torch, onnx or numpy."""
