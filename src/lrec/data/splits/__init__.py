"""Where users are cut into training, validation and test."""
