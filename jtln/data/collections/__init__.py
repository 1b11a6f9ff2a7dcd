"""Published image collections: their classes, their files and their official parts."""
