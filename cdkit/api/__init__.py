"""What Python calls: the stages as functions that return objects."""
