"""From the bytes of an image file to pixels of the wanted box and size; what loader, tools and models share."""
