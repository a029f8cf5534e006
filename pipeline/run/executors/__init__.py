"""Where tasks run: one class and one file each, behind one interface."""
