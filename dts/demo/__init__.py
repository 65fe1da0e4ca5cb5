"""Real tasks, fine-tunes of a real encoder on them, and how close a reconstruction comes to each fine-tune."""
