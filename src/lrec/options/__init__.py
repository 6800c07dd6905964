"""Options and objects: the parser, arguments, class paths, YAML files."""
