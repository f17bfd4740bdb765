"""Decodes image files to pixels of a given box and size; shared by loader, tools and models."""
