"""Mirrors of events.jsonl in the trackers people have open: TensorBoard and MLflow. The file stays the truth."""
