"""perfkit inside other people's frameworks. Each module here needs the extra of its name."""
