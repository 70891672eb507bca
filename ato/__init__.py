"""The method: zero-invariant groups, the controller that masks them, and the training that removes them."""
