"""Importers: data sets as annotation tools write them become folders of images, masks, classes and splits."""
