"""Label files: their forms, their ids, and how they become class ids."""
