"""What the explorer page is built from: neighbours, confusions, maps of embeddings."""
