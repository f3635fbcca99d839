"""What each stage needs, makes and is identified by."""
