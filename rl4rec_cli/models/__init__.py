"""Language models and embedders by name, shape and vocabulary: nothing is loaded."""
