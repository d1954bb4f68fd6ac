"""Published results as functions that return a typed `Run`. One function per result."""
