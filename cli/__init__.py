"""The ``placerank`` command, one small file a subcommand."""
