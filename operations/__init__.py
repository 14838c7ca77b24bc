"""What an engineer does with the pipeline: run it, compile it, look at what it made."""
