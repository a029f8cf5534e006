"""The ground floor: errors, settings, storage, files, processes, words. Imports nothing of ours."""
