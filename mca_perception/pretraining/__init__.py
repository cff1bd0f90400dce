"""Pre-training of the backbone on images, texts and pairs: contrastive, masked-data and matching objectives."""
