"""Classification of labelled images: contrastive training, evaluation of embeddings, errors in the labels."""
