"""One training run: set up, looped over epochs and steps, measured, resumed, and saved."""
