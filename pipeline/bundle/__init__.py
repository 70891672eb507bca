"""What goes to the device beside the model: `infer.py`, which is copied as it is, and the texts about the model."""
