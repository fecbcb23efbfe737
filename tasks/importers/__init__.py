"""From files that other tools wrote to a recorded folder, a module per format."""
