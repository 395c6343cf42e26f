"""Data sets: classes, reading of images and masks, layouts, statistics, validation, transforms, pictures of labels."""
