"""Options and objects: the parser, objects from options and back, class paths, configuration files."""
