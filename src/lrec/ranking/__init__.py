"""From scores to exact ranks and lists."""
