"""Where arrays come in and results go out, each in its owner's own kind: `host` memory, and `cuda`."""
