"""The commands that take a trained model's folder: a file each, with its flags. What is heavy is imported in `run`."""
