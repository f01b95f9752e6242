"""A model's files: opened, checked, named; nothing in them is executed or believed."""
