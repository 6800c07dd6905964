"""A scaling study: the ladder trained, predicted and judged; and what is compared across studies."""
