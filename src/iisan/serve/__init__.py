"""What people use of a finished run: items that are added and removed."""
