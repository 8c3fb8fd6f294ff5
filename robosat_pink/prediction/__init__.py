"""The map of a trained model: the model and its tiles, predicted, written as tiles and mosaics, and shown."""
