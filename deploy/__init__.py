"""What mirrors are deployed with; nothing here is installed."""
