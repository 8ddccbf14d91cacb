"""Worker processes: started, watched, replaced and ended."""
